"""Attention and its backends."""
