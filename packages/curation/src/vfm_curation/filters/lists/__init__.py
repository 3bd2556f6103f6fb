"""Filters by lists of words, addresses, uids and synsets."""
