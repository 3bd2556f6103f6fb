"""Images alone, and image-text pairs: `data.images` and `data.pairs`."""
