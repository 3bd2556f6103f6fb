"""Encoders for images of any size, and augmentation of images with boxes and masks."""
