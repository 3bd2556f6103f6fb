"""Inputs of training: from a sample to tensors. Everything random is drawn from the sample's own seed.

A step therefore has the same crops, noise, times and conditions with any micro-batches, workers and processes.
"""

# B batch, S side of CLIP's image, G side of the generator's image, C channels, h side of the denoised sample, N times
# L context length, D width of the joint space

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data import BadSample, Batch, ImageTransform, Sample, SampleDraw, TrainingData, decode_image, to_tensor
from vfm.models import Preprocess
from vfm.train import Frozen
from vfm_diva.generator.latents import StoredLatents
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.generator.space import Space

Inputs = TypeVar("Inputs")

# Each separates its draws (conditions, patches, second crops, latents) from the draw of the crop, with the same seed.
CONDITION_STREAM = 0x636F6E64
PATCH_STREAM = 0x70617463
VIEW_STREAM = 0x76696577
LATENT_STREAM = 0x6C61746E


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """A crop of an image for CLIP and for the generator, with noise. Of a sample, or of a batch (B, ...).

    images: image for CLIP, uint8 (3, S, S).
    target_images: image for the generator, uint8 (3, G, G). None with cached latents.
    target_latents: cached latents of the generator's image, (C, h, h), or None.
    latent_noise: unit-normal noise that samples the VAE's posterior, (C, h, h). None takes its mean.
    noise: unit-normal noise, (N, C, h, h).
    times: diffusion times in [0, 1), (N,).
    """

    images: Tensor
    target_images: Tensor | None = None
    target_latents: Tensor | None = None
    latent_noise: Tensor | None = None
    noise: Tensor
    times: Tensor


@dataclass(frozen=True, kw_only=True)
class TuneInputs(ImageInputs):
    """Inputs of `diva.tune`.

    patch_draws: uniform numbers that choose the patches, (num_draws,), or as many for each time. None if nothing is
        drawn.
    views: random crop of `images`, uint8 (3, S, S). None unless the loss compares it.
    """

    patch_draws: Tensor | None = None
    views: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PriorInputs(ImageInputs):
    """Inputs of `diva.prior`.

    tokens: tokens of a caption, (L,).
    is_text: whether the caption is the condition instead of the image, bool.
    is_empty: whether the condition is dropped, bool.
    condition_noise: unit-normal noise, (D,).
    """

    tokens: Tensor
    is_text: Tensor
    is_empty: Tensor
    condition_noise: Tensor


@dataclass(frozen=True)
class MakeImageInputs:
    """Makes `ImageInputs`. Both images are resized from the decoded image with antialiasing, as in evaluation.

    transform: makes the generator's image.
    sampler: draws noise and times.
    preprocess: CLIP's preprocessing.
    stored: cached latents, used instead of the generator's image. `transform` must then make their crops.
    sample_latents: draw noise for the VAE's posterior.
    """

    transform: ImageTransform
    sampler: NoiseSampler
    preprocess: Preprocess
    stored: StoredLatents | None = None
    sample_latents: bool = False

    def __call__(self, sample: Sample, draw: SampleDraw) -> ImageInputs:
        """Make the inputs of a sample.

        Raises:
            BadSample: its image is unreadable, or was when latents were cached.
        """
        noise, times = self.sampler(draw.seed)
        if self.stored:
            crop_seed, latents = self.stored(draw)
            image = decode_image(sample.image, sample.key)
            return ImageInputs(
                images=self._clip_image(image, crop_seed), target_latents=latents, noise=noise, times=times
            )
        image = decode_image(sample.image, sample.key)
        latent_noise = None
        if self.sample_latents:
            generator = torch.Generator().manual_seed(draw.seed ^ LATENT_STREAM)
            latent_noise = torch.randn(noise.shape[1:], generator=generator)
        return ImageInputs(
            images=self._clip_image(image, draw.seed),
            target_images=to_tensor(self.transform.apply(image, draw.seed)),
            latent_noise=latent_noise,
            noise=noise,
            times=times,
        )

    def _clip_image(self, image: Image.Image, seed: int) -> Tensor:
        # Without random crops CLIP sees the image as in evaluation.
        if not self.transform.scale:
            return to_tensor(self.preprocess.fit(image))
        transform = replace(
            self.transform, size=self.preprocess.image_size, interpolation=self.preprocess.interpolation
        )
        return to_tensor(transform.apply(image, seed))


@dataclass(frozen=True)
class MakeTuneInputs:
    """Makes `TuneInputs`, with `num_draws` random numbers for the choice of patches, and a second crop by `view`."""

    images: MakeImageInputs
    num_draws: int = 0
    view: ImageTransform | None = None

    def __call__(self, sample: Sample, draw: SampleDraw) -> TuneInputs:
        """Make the inputs of a sample. Errors are as in `MakeImageInputs`."""
        draws = None
        if self.num_draws:
            draws = torch.rand(self.num_draws, generator=torch.Generator().manual_seed(draw.seed ^ PATCH_STREAM))
        inputs, views = self.images(sample, draw), None
        if self.view:
            first = Image.fromarray(inputs.images.permute(1, 2, 0).numpy())
            views = to_tensor(self.view.apply(first, draw.seed ^ VIEW_STREAM))
        return TuneInputs(**vars(inputs), patch_draws=draws, views=views)


@dataclass(frozen=True)
class MakePriorInputs:
    """Makes `PriorInputs`. If an image has several captions, one is drawn. With `text_share` 0 it needs none.

    images: makes the images.
    tokenize: CLIP's tokenizer.
    language: language of the captions.
    embed_dim: width D of the joint space.
    text_share: probability that the caption is the condition.
    dropout: probability that the condition is dropped.
    """

    images: MakeImageInputs
    tokenize: Callable[[list[str]], Tensor]
    language: str
    embed_dim: int
    text_share: float
    dropout: float

    def __call__(self, sample: Sample, draw: SampleDraw) -> PriorInputs:
        """Make the inputs of a sample.

        Raises:
            BadSample: it has no caption in the language, or its image is unusable, as in `MakeImageInputs`.
        """
        captions = sample.texts.get(self.language) or ([] if self.text_share else [""])
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({self.language})")
        # All four draws are made for each sample, whatever is used of them, so that no setting changes another draw.
        rng = np.random.default_rng([draw.seed, CONDITION_STREAM])
        caption = captions[rng.integers(len(captions))]
        noise = rng.standard_normal(self.embed_dim, np.float32)
        return PriorInputs(
            **vars(self.images(sample, draw)),
            tokens=self.tokenize([caption])[0],
            is_text=torch.tensor(rng.random() < self.text_share),
            is_empty=torch.tensor(rng.random() < self.dropout),
            condition_noise=torch.from_numpy(noise),
        )


def clean_targets(space: Frozen[Space], inputs: ImageInputs) -> Tensor:
    """Compute the samples to denoise before noise is added, (B, C, h, h). Cached latents are used if there are any."""
    if inputs.target_latents is not None:
        return inputs.target_latents.float()
    x0: Tensor = space(inputs.target_images, inputs.latent_noise)
    return x0


def sample_batches(
    data: TrainingData[Inputs], device: torch.device, *, num_batches: int, batch_size: int
) -> Iterator[Batch[Inputs]]:
    """Yield batches of distinct samples for measurements: the first ones in the shuffled order of training.

    The order matters, since a dataset's shards may be sorted.

    Args:
        data: data of the training run.
        device: device of the batches.
        num_batches: largest number of batches. A small dataset gives fewer.
        batch_size: samples per batch. A smaller dataset gives one batch.
    """
    # Distinct samples only: a batch larger than the dataset would repeat them.
    size = min(batch_size, len(data.source))
    count = min(num_batches, len(data.source) // size)
    for (batch,) in replace(data, global_batch_size=size).steps(0, count):
        yield batch.to(device)


def usable_samples(data: TrainingData[Inputs]) -> Iterator[tuple[Sample, Inputs]]:
    """Yield the usable samples, in the shuffled order of training, with their inputs."""
    order = data.order()
    for position in range(len(data.source)):
        index = int(order(position, position + 1)[0])
        try:
            sample = data.source[index]
            yield sample, data.make(sample, SampleDraw.of(data.seed, 0, index))
        except BadSample:
            continue
