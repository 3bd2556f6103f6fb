"""Diffusion models in diffusers' layout."""
