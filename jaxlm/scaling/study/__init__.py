"""A study of a table of runs: points, fits, diagnostics, record, report."""
