"""The filter `where` with an expression over columns of texts, of images and of the user's own data."""
