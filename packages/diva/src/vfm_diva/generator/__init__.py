"""Diffusion models: denoisers, conditions, latent spaces and inputs."""
