"""Read settings and image processors from folders in the layout of transformers, without that library."""
