"""Balance the long tail of entries."""
