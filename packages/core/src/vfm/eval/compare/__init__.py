"""Comparisons of trainings by their curves, and tables over reports."""
