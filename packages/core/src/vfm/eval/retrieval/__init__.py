"""Image-text retrieval."""
