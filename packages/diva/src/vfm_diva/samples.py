"""From a sample to what a step of diffusion takes; all that is random is drawn from the sample's own seed.

So a step has the same noise, times and conditions whatever the micro-batches, workers and processes.
"""

# S side of CLIP's image, G side of the generator's picture, N times, L context length, D width of the joint space

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data.images import decode_image
from vfm.data.loader import SampleSeed
from vfm.data.sample import BadSample, Sample
from vfm.data.transforms import ImageTransform, to_tensor
from vfm.models.preprocess import Preprocess
from vfm_diva.latents import StoredLatents
from vfm_kernels import sample_times
from vfm_kernels.diffusion import TimeDistribution

_NOISE_STREAM = 0x6E6F6973  # set the seeds of what else is drawn apart from that of the crop
_CONDITION_STREAM = 0x636F6E64


@dataclass(frozen=True)
class MakeNoisy:
    """Makes `pictures` (3, G, G) uint8 of a picture, and `noise` (N, C, h, h) and `times` (N,) for it.

    transform: brings it to the generator's size.
    noise_shape: (C, h, h).
    num_times: N.
    distribution, mean, std, shift: see `vfm_kernels.sample_times`.
    """

    transform: ImageTransform
    noise_shape: tuple[int, int, int]
    num_times: int = 1
    distribution: TimeDistribution = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, image: Image.Image, seed: int) -> dict[str, Tensor]:
        """The tensors of one RGB picture."""
        return {"pictures": to_tensor(self.transform.apply(image, seed)), **self.noise(seed)}

    def noise(self, seed: int) -> dict[str, Tensor]:
        """Those that no picture is needed for."""
        draws = torch.Generator().manual_seed(seed ^ _NOISE_STREAM)
        return {
            "noise": torch.randn(self.num_times, *self.noise_shape, generator=draws),
            "times": sample_times(
                self.distribution, self.num_times, draws, mean=self.mean, std=self.std, shift=self.shift
            ),
        }


@dataclass(frozen=True)
class MakeViews:
    """Makes `images` (3, S, S) uint8 for CLIP besides what `MakeNoisy` makes: the same part of the same picture.

    Both are resized from the decoded picture with antialiasing, as CLIP's images are at evaluation.

    noisy: the generator's way with a picture.
    preprocess: CLIP's.
    stored: makes `latents` (C, h, h) in place of `pictures`, of the crop that was kept; then `noisy` has its crops.
    """

    noisy: MakeNoisy
    preprocess: Preprocess
    stored: StoredLatents | None = None

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: its picture cannot be read, or could not when latents were kept.
        """
        if self.stored:
            crop_seed, latents = self.stored(seed)
            image = decode_image(sample.image, sample.key)
            return {"images": self._view(image, crop_seed), "latents": latents, **self.noisy.noise(seed)}
        image = decode_image(sample.image, sample.key)
        return {"images": self._view(image, seed), **self.noisy(image, seed)}

    def _view(self, image: Image.Image, seed: int) -> Tensor:
        transform, facts = self.noisy.transform, self.preprocess
        if not transform.scale:
            return to_tensor(facts.fit(image))
        transform = replace(transform, size=facts.image_size, interpolation=facts.interpolation)
        return to_tensor(transform.apply(image, seed))


@dataclass(frozen=True)
class MakeConditioned:
    """Makes what the prior takes: besides `MakeViews`, a caption and which condition is used.

    `tokens` (L,); `is_text` and `is_empty`, bool; `condition_noise` (D,), unit normal. Of several captions one is
    drawn.
    """

    views: MakeViews
    tokenize: Callable[[list[str]], Tensor]
    language: str
    embed_dim: int
    text_share: float
    empty_share: float

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: it has no caption in the language, or its picture cannot be read.
        """
        captions = sample.texts.get(self.language)
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({self.language})")
        rng = np.random.default_rng([seed, _CONDITION_STREAM])
        caption = captions[rng.integers(len(captions))]
        noise = rng.standard_normal(self.embed_dim, np.float32)
        return {
            **self.views(sample, seed),
            "tokens": self.tokenize([caption])[0],
            "is_text": torch.tensor(rng.random() < self.text_share),
            "is_empty": torch.tensor(rng.random() < self.empty_share),
            "condition_noise": torch.from_numpy(noise),
        }
