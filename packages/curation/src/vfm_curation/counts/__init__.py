"""Matches on disk, counts of entries and probabilities."""
