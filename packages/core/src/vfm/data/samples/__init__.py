"""One sample with its image, captions, order and random draws."""
