"""Parameters, FLOPs and bytes of a run before it exists."""
