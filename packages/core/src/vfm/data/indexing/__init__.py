"""Build the index of a user's files."""
