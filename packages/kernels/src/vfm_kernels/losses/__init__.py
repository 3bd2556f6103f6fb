"""Losses: contrastive, cosine, diffusion."""
