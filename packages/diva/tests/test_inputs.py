"""Inputs of a sample: one crop at two sizes, and noise that depends on the sample's seed only."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diva_toy import draw_of
from vfm.data import BadSample, ImageTransform, Sample
from vfm.models import Preprocess
from vfm_diva import LogitNormal
from vfm_diva.generator.inputs import CONDITION_STREAM, MakeImageInputs, MakePriorInputs, MakeTuneInputs
from vfm_diva.generator.noise import NOISE_STREAM, NoiseSampler


def sample(width: int = 50, height: int = 40, **texts: list[str]) -> Sample:
    """Return an image whose red rises to the right and whose green rises downwards, so that crops can be identified."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    return Sample("a", "a", png(pixels), texts)


def png(pixels: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def make(
    scale: tuple[float, float] | None = (0.3, 0.6),
    *,
    preprocess: Preprocess | None = None,
    num_times: int = 1,
    **crop: Any,
) -> MakeImageInputs:
    transform = ImageTransform(8, "crop", scale=scale, **crop)
    return MakeImageInputs(
        transform, NoiseSampler((3, 8, 8), num_times, LogitNormal()), preprocess or Preprocess(image_size=32)
    )


@pytest.mark.parametrize("seed", range(5))
def test_clip_and_the_generator_see_the_same_crop(seed: int) -> None:
    inputs = make()(sample(), draw_of(seed))
    assert inputs.images.shape == (3, 32, 32)
    assert inputs.target_images is not None
    assert inputs.target_images.shape == (3, 8, 8)
    large, small = inputs.images.float(), inputs.target_images.float()
    assert (large.mean(dim=(1, 2)) - small.mean(dim=(1, 2))).abs().max() < 2
    assert not torch.equal(inputs.images, make()(sample(), draw_of(seed + 1)).images)


@pytest.mark.parametrize("scale", [None, (1.0, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_for_clip_are_resized_by_its_own_rule(scale: tuple[float, float] | None, interpolation: str) -> None:
    preprocess = Preprocess(image_size=16, interpolation=interpolation)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    inputs = make(scale, preprocess=preprocess, ratio=(1.0, 1.0))(Sample("a", "a", png(noise)), draw_of(0))
    assert np.array_equal(inputs.images.permute(1, 2, 0).numpy(), preprocess.fit(noise))


def test_without_a_crop_images_for_clip_are_those_of_evaluation() -> None:
    preprocess = Preprocess(image_size=16)
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = make(None, preprocess=preprocess)(Sample("a", "a", png(noise)), draw_of(0)).images
    assert np.array_equal(image.permute(1, 2, 0).numpy(), preprocess.fit(noise))
    # Antialiased: 4 x 4 pixels of noise become one, whose spread is far below that of single pixels (bicubic: 0.35).
    assert image.float().std() < 0.5 * noise.std()


def test_noise_and_times_depend_on_the_seed_only() -> None:
    first, again, other = (
        make(num_times=3)(sample(*size), draw_of(seed)) for size, seed in (((50, 40), 7), ((9, 9), 7), ((9, 9), 8))
    )
    assert first.noise.shape == (3, 3, 8, 8)
    assert first.times.shape == (3,)
    for name in ("noise", "times"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def make_conditioned(text_share: float, dropout: float) -> MakePriorInputs:
    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] for text in texts])

    return MakePriorInputs(make(), tokenize, "en", embed_dim=64, text_share=text_share, dropout=dropout)


@pytest.mark.parametrize(("text_share", "dropout"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.08)])
def test_conditions_are_drawn_in_their_shares(text_share: float, dropout: float) -> None:
    conditioned, image = make_conditioned(text_share, dropout), sample(8, 8, en=["a", "bb"])
    rows = [conditioned(image, draw_of(seed)) for seed in range(600)]
    shares = [np.mean([bool(getattr(row, name)) for row in rows]) for name in ("is_text", "is_empty")]
    assert np.abs(np.subtract(shares, [text_share, dropout])).max() < 0.07
    assert {int(row.tokens) for row in rows} == {1, 2}
    noise = torch.stack([row.condition_noise for row in rows])
    assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("scale", [None, (0.3, 0.6)])
def test_a_batch_has_the_draws_of_each_sample_alone(scale: tuple[float, float] | None) -> None:
    prior = replace(make_conditioned(0.5, 0.3), images=replace(make(scale, num_times=3), sample_latents=True))
    samples, draws = [sample(20 + n, 30, en=["a", "bb", "ccc"]) for n in range(7)], [draw_of(n) for n in range(7)]
    uses = [prior.use(prior.read(one), draw) for one, draw in zip(samples, draws, strict=True)]
    batch = prior.join(uses, draws)
    for row, (one, draw) in enumerate(zip(samples, draws, strict=True)):
        alone = prior(one, draw)
        for name, value in vars(alone).items():
            if name != "target_latents":
                assert torch.equal(getattr(batch, name)[row], value), name
        stream = torch.Generator().manual_seed(draw.seed ^ NOISE_STREAM)
        assert torch.equal(batch.noise[row], torch.randn(3, 3, 8, 8, generator=stream))
        assert torch.equal(batch.times[row], LogitNormal().build(3, stream))
        rng = np.random.default_rng([draw.seed, CONDITION_STREAM])
        assert batch.tokens[row].item() == 1 + rng.integers(3)
        assert np.array_equal(batch.condition_noise[row].numpy(), rng.standard_normal(64, np.float32))
        assert (batch.is_text[row], batch.is_empty[row]) == (rng.random() < 0.5, rng.random() < 0.3)


def test_images_are_resized_once_unless_a_crop_is_drawn() -> None:
    for fixed in (make(None), MakeTuneInputs(make(None), view=ImageTransform(8, scale=(0.5, 1.0)))):
        content = fixed.read(sample())
        assert all(fixed.use(content, draw_of(seed)) is content for seed in range(2))
    for cropped in (make((0.3, 0.6)), make(None, flip=0.5)):
        assert isinstance(cropped.read(sample()), Image.Image)


def test_samples_without_a_caption_or_a_readable_image_are_bad() -> None:
    with pytest.raises(BadSample, match="missing_caption"):
        make_conditioned(0.5, 0.0)(sample(8, 8, de=["ein Kreis"]), draw_of(0))
    with pytest.raises(BadSample, match="unreadable_image"):
        make_conditioned(0.5, 0.0)(Sample("a", "a", b"no image", {"en": ["a"]}), draw_of(0))
