"""Rows of a run: mixtures of sources, the order in which rows are read, and reading ahead."""
