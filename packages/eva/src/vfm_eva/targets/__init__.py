"""A teacher's features as targets, computed in every step or beforehand."""
