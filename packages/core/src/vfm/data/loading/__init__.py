"""Batches of samples for training and evaluation. Imports torch."""
