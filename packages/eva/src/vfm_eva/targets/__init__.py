"""Targets of pre-training: a teacher's features, computed in every step or beforehand."""
