"""Masks and selections of tokens."""
