"""Files of runs as people have them: text tables, JSON, Parquet, exports; units; implausible rows.

grid           a file or a folder of curves as rows of text cells, whatever its format
exports        tables as Weights & Biases exports them
units          units of headers and cells: `params (B)`, `total_gflops`, `33.6M`
columns        which column holds which field, and in which unit
quantities     cells as numbers
plausibility   values that no run can have: refused by row and column
"""
