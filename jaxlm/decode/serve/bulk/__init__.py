"""Texts for many prompts: read a line at a time, decoded together, kept as each ends."""
