"""WebDataset tars with random access."""
