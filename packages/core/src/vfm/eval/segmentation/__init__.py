"""Semantic and panoptic segmentation, and the probe of patch tokens."""
