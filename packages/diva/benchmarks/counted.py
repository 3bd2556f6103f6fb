"""Count the multiplications of a step at the size of Stable Diffusion 2.1 and ViT-L-14, on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from parts import Parts, build
from plain_loop import PlainLoop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCH = 16  # a micro-batch of the released code, which shares the constant text


def plain_of(parts: Parts, adapter: nn.Linear) -> PlainLoop:
    """Build the plain loop over the same parts."""
    generator = parts.generator
    return PlainLoop(
        parts.clip.module,
        parts.clip.pixels,
        adapter,
        unet=generator.denoiser.network,
        vae=generator.space.vae,
        text=parts.text,
        prompt=parts.prompt,
        alphas_cumprod=generator.denoiser.alphas_cumprod,
        share=0.297,
    )


def counted(sizes: dict[str, Any], batch_size: int = BATCH) -> dict[str, float]:
    """Count the FLOP per image of a step of each variant (2 for a multiplication and its addition)."""
    plain_parts, parts = (build(sizes, "meta") for _ in range(2))
    task = parts.task()
    first = parts.inputs(batch_size)
    width, embed_dim = parts.generator.inputs.context_width, parts.clip.embed_dim
    with torch.device("meta"):
        plain = plain_of(plain_parts, nn.Linear(embed_dim, width))
        latents = torch.empty(batch_size, *parts.generator.noise_shape)
    later = replace(first, target_images=None, target_latents=latents)
    variants = {
        "plain loop": lambda: plain.backward(first),
        "first epoch": lambda: backward(task(first)[0]),
        "later epochs, cached latents": lambda: backward(task(later)[0]),
    }
    found = {}
    for name, step in variants.items():
        with FlopCounterMode(display=False) as counter:
            step()
        found[name] = counter.get_total_flops() / batch_size
    return found


def backward(loss: Tensor) -> None:
    """Compute the gradients."""
    loss.backward()  # type: ignore[no-untyped-call]
