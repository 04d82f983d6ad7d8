"""Objectives of preferred and rejected responses."""
