"""Comparison of training runs by their curves, and tables over several reports."""
