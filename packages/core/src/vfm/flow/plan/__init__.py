"""The plan of a run, and the store."""
