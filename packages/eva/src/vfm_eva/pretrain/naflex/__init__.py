"""Training on images of their own aspect ratio, packed into rows of tokens without padding."""
