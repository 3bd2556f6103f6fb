"""What a step takes of a sample: one crop at two sizes, and noise that depends on the sample's seed alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vfm.data.sample import BadSample, Sample
from vfm.data.transforms import ImageTransform
from vfm.models.preprocess import Preprocess
from vfm_diva.samples import MakeConditioned, MakeNoisy, MakeViews


def sample(width: int = 50, height: int = 40, **texts: list[str]) -> Sample:
    """A picture whose red rises to the right and whose green rises downwards, so that a crop can be read off it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return Sample("a", "a", data.getvalue(), texts)


def views(scale: tuple[float, float] | None = (0.3, 0.6), **changes) -> MakeViews:
    noisy = MakeNoisy(ImageTransform(8, "crop", scale=scale), (3, 8, 8), **changes)
    return MakeViews(noisy, Preprocess(image_size=32))


@pytest.mark.parametrize("seed", range(5))
def test_clip_and_the_generator_see_the_same_part_of_a_picture(seed: int) -> None:
    made = views()(sample(), seed)
    assert made["images"].shape == (3, 32, 32)
    assert made["pictures"].shape == (3, 8, 8)
    large, small = made["images"].float(), made["pictures"].float()
    assert (large.mean(dim=(1, 2)) - small.mean(dim=(1, 2))).abs().max() < 2
    assert not torch.equal(made["images"], views()(sample(), seed + 1)["images"])


@pytest.mark.parametrize("scale", [None, (1.0, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_clip_sees_pictures_resized_by_its_own_rule(scale: tuple[float, float] | None, interpolation: str) -> None:
    preprocess = Preprocess(image_size=16, interpolation=interpolation)
    noisy = MakeNoisy(ImageTransform(8, "crop", scale=scale, ratio=(1.0, 1.0)), (3, 8, 8))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    seen = MakeViews(noisy, preprocess)(Sample("a", "a", data.getvalue()), 0)["images"]
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), preprocess.fit(noise))


def test_without_a_crop_clip_sees_what_it_sees_at_evaluation() -> None:
    preprocess = Preprocess(image_size=16)
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    make = MakeViews(MakeNoisy(ImageTransform(8, "crop"), (3, 8, 8)), preprocess)
    image = make(Sample("a", "a", data.getvalue()), 0)["images"]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), preprocess.fit(noise))
    # Antialiased: of noise, 4 x 4 pixels become one, whose spread is far below that of single pixels (bicubic: 0.35).
    assert image.float().std() < 0.5 * noise.std()


def test_noise_and_times_depend_on_the_seed_alone() -> None:
    first, again, other = (
        views(num_times=3)(sample(*size), seed) for size, seed in (((50, 40), 7), ((9, 9), 7), ((9, 9), 8))
    )
    assert first["noise"].shape == (3, 3, 8, 8)
    assert first["times"].shape == (3,)
    for name in ("noise", "times"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def conditioned(text_share: float, empty_share: float) -> MakeConditioned:
    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] for text in texts])

    return MakeConditioned(views(), tokenize, "en", embed_dim=64, text_share=text_share, empty_share=empty_share)


@pytest.mark.parametrize(("text_share", "empty_share"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.08)])
def test_conditions_are_drawn_in_their_shares(text_share: float, empty_share: float) -> None:
    make, picture = conditioned(text_share, empty_share), sample(8, 8, en=["a", "bb"])
    made = [make(picture, seed) for seed in range(600)]
    shares = [np.mean([bool(row[name]) for row in made]) for name in ("is_text", "is_empty")]
    assert np.abs(np.subtract(shares, [text_share, empty_share])).max() < 0.07
    assert {int(row["tokens"]) for row in made} == {1, 2}
    spread = torch.stack([row["condition_noise"] for row in made])
    assert abs(spread.std() - 1) < 0.02


def test_a_sample_without_a_caption_is_passed_over() -> None:
    with pytest.raises(BadSample, match="missing_caption"):
        conditioned(0.5, 0.0)(sample(8, 8, de=["ein Kreis"]), 0)
    with pytest.raises(BadSample, match="unreadable_image"):
        conditioned(0.5, 0.0)(Sample("a", "a", b"no picture", {"en": ["a"]}), 0)
