"""Sources of documents: files, corpora of this machine, and their splits."""
