"""Comparison of imported models with the libraries that wrote them."""
