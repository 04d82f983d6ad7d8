"""Objectives of a policy's own samples."""
