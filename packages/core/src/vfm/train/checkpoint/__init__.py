"""Checkpoints, whole and sharded."""
