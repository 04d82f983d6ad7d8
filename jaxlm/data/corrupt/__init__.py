"""Corruptions of text that a model learns to undo: masks, spans, infilling."""
