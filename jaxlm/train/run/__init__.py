"""The Run, and the directory it leaves."""
