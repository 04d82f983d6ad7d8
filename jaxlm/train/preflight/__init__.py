"""Checks and predictions of a run before it starts: memory, the compiled step, its time."""
