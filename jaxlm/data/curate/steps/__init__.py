"""Steps that score each document by itself."""
