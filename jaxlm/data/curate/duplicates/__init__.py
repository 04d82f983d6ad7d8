"""Copies of documents: exact, of lines and paragraphs, and near."""
