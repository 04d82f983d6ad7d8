"""Sizes shared by the tiny models: rows, tokens a row, vocabulary."""

B, T, V = 8, 8, 32
