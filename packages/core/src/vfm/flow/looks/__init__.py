"""Inspect the format, contents and problems of a path, and suggest commands that use it."""
