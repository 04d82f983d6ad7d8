"""The optimiser: transformation, schedule, muP."""
