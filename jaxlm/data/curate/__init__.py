"""Curation of raw text: scores, decisions, and a reason for everything that is removed."""
