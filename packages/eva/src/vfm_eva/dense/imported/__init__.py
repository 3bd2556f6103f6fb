"""Detectors and segmenters that other libraries trained, used by their own code."""
