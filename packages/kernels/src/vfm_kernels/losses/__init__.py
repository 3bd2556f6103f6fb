"""Contrastive, cosine and diffusion losses."""
