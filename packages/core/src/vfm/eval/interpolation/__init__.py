"""Interpolation between two CLIP models, evaluated along the way."""
