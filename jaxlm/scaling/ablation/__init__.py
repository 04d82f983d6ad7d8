"""Tests of whether a change helps: paired runs, sequential tests, compute multipliers."""
