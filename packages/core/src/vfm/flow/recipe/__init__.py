"""Recipes: YAML, overrides, seeds and validation."""
