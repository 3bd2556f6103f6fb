"""Denoisers, conditions, latent spaces and inputs of diffusion models."""
