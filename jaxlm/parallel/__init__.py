"""Floor 1: the only code that knows the mesh."""
