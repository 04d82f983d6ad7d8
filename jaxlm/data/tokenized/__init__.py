"""Tokenised documents on disk: shards, their manifest, and the cache of a run."""
