"""Multiplications of a step, counted at Stable Diffusion 2.1's and ViT-L-14's size on tensors without contents."""

from __future__ import annotations

from typing import Any

import torch
from parts import Parts, build
from plain_loop import PlainLoop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCH = 16  # a micro-batch of the released code: constant text is shared by so many pictures


def plain_of(parts: Parts, adapter: nn.Linear) -> PlainLoop:
    """The plain loop over the same parts."""
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
    """FLOP (2 for a multiplication and its addition) of one picture in a step of each way."""
    plain_parts, parts = (build(sizes, "meta") for _ in range(2))
    task = parts.task()
    first = parts.batch(batch_size)
    width, embed_dim = parts.generator.wants.context_width, parts.clip.embed_dim
    with torch.device("meta"):
        plain = plain_of(plain_parts, nn.Linear(embed_dim, width))
        later = {**first, "latents": torch.empty(batch_size, *parts.generator.noise_shape)}
    del later["pictures"]
    ways = {
        "plain loop": lambda: plain.backward(first),
        "first epoch": lambda: backward(task(first)[0]),
        "later epochs, kept latents": lambda: backward(task(later)[0]),
    }
    found = {}
    for name, way in ways.items():
        with FlopCounterMode(display=False) as counter:
            way()
        found[name] = counter.get_total_flops() / batch_size
    return found


def backward(loss: Tensor) -> None:
    """The gradients."""
    loss.backward()  # type: ignore[no-untyped-call]
