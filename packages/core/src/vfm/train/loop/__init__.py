"""The training loop, with its metrics, checks and evaluations."""
