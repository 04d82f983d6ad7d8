"""Floor 1: norm, rope, linear, attention, loss. Arrays in, arrays out; knows no model or mesh."""
