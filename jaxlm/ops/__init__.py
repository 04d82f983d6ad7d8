"""Floor 1: norm, rope, linear, attention, loss. Arrays in, arrays out; no model or mesh."""
