"""Filters of duplicates and near-duplicates."""
