"""One file a family: its `config.json` and its weights, both ways."""
