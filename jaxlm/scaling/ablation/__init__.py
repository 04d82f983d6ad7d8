"""Whether a change helps: paired runs, sequential tests, compute multipliers."""
