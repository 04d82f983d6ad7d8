"""Reports of a curated directory: why a document went, tables, a page."""
