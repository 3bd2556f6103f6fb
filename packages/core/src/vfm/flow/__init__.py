"""From a recipe file to artifacts on disk."""
