"""Listeners of a run: console, progress, JSON lines and trackers."""
