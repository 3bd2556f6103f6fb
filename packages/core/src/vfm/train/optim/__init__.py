"""Optimizers, schedules, averages and precision."""
