"""Pre-training targets: a teacher's features, computed in every step or beforehand."""
