"""Layers of timm and open_clip with fused ops."""
