"""Feedback of a frozen diffusion model: `diva.tune`."""
