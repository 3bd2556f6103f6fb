"""Recognise the format of the files at a path."""
