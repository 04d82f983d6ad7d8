"""The three approaches of Hoffmann et al. (2022) to N*(C), side by side."""
