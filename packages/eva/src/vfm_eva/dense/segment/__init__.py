"""Segmentation by queries in an encoder's last blocks, or by a linear or UperNet head on its maps."""
