"""The MLP denoiser: equal to its formulas one sample at a time, of one size, and trained and read back as a prior."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diva_toy import prior_config, run, tune_config
from vfm.plugin import ClipCheckpoint, Pool, UserError
from vfm_diva import Mlp
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import build_generator, load_generator
from vfm_diva.generator.networks import network_inputs, predict

NETWORK = Mlp(width=24, num_blocks=2)


def plain_mlp(weights: dict[str, Tensor], noisy: Tensor, time: float, tokens: Tensor) -> Tensor:
    """Denoise one sample, (C, h, h), with context tokens (K, W)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    angles = [time * 10000 ** (-k / 16) for k in range(16)]
    code = torch.tensor([math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles])
    condition = linear("context", tokens.mean(dim=0)) + linear("time", code)
    x = F.silu(linear("first", noisy.flatten()) + condition)
    for number in range(NETWORK.num_blocks):
        scale, shift = linear(f"modulations.{number}", F.silu(condition)).chunk(2)
        x = x + F.silu(linear(f"blocks.{number}", x) * (1 + scale) + shift)
    return linear("last", x).view_as(noisy)


def test_prediction_equals_the_formulas_one_sample_at_a_time() -> None:
    draws = torch.Generator().manual_seed(0)
    network = NETWORK.build(sample_size=4, channels=3, context_width=6)
    noisy, tokens = torch.randn(3, 3, 4, 4, generator=draws), torch.randn(3, 2, 6, generator=draws)
    times = torch.tensor([0.0, 20.0, 999.0])
    predicted = predict(network, noisy, times, Conditioning(tokens))
    for row in range(3):
        plain = plain_mlp(network.state_dict(), noisy[row], times[row].item(), tokens[row])
        torch.testing.assert_close(predicted[row], plain, rtol=1e-4, atol=1e-5)


def test_prior_with_an_mlp_is_read_back_and_gives_feedback(tmp_path: Path, pool: Pool, clip: ClipCheckpoint) -> None:
    stage = prior_config(denoiser=NETWORK)
    checkpoint = run(stage, tmp_path / "prior", clip=clip, pool=pool)
    network = load_generator(checkpoint).denoiser.network
    assert network_inputs(network).side == stage.image_size
    tuned = run(tune_config(), tmp_path / "tune", clip=clip, pool=pool, prior=checkpoint)
    assert tuned.embed_dim == clip.embed_dim


def test_other_sizes_are_refused() -> None:
    generator = build_generator(image_size=8, embed_dim=16, network=NETWORK)
    assert generator.noise_shape == (3, 8, 8)
    with pytest.raises(UserError, match="image_size must be 8, the only size of this generator, got 16"):
        generator.noise_shape_at(16)
