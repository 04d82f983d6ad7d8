"""Where the tasks of a curation run: processes of this machine, or ranks of another engine."""
