"""Images alone (`data.images`), and image-text pairs (`data.pairs`)."""
