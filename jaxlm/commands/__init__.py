"""Floor 5: subcommands that are too long for cli.py; imported when they are called."""
