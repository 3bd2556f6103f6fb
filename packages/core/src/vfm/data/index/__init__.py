"""The index of a dataset, and random access to its samples."""
