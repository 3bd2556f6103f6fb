"""Folders in the layout of transformers: their settings and image processors. `transformers` is not needed."""
