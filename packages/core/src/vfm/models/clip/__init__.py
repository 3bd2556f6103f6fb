"""CLIP models: open_clip builds them, and a folder that open_clip loads holds them."""
