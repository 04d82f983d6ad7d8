"""Subcommands of `jaxlm`, imported when they are called."""
