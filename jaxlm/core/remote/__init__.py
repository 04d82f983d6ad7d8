"""Run directories in an object store: objects, the local copy that is worked on, and the lock."""
