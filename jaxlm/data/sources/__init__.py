"""Where documents come from: files, corpora of this machine, and their splits."""
