"""Read recipes with overrides and seeds, and validate them."""
