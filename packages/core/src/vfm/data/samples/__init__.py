"""One sample: its image, captions, order and random draws."""
