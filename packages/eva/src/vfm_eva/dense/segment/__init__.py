"""Segmentation with an encoder: queries in its last blocks, or a linear or UperNet head on its maps."""
