"""Training of a small diffusion model: `diva.prior`."""
