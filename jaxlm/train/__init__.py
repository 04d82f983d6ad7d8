"""Floor 4: the run, its step, its loop, and what it leaves on the disk."""
