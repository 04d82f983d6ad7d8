"""Floor 1: the only code that depends on the mesh."""
