"""Training inputs: from samples to tensors. All random numbers are drawn from the seed of the sample.

A step therefore has the same crops, noise, times and conditions with any micro-batches, workers and processes.
"""

# B batch, S side of CLIP's image, G side of the generator's image, C channels, h side of the denoised sample, N times
# L context length, D width of the joint space

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data import (
    BadSample,
    Batch,
    BatchMake,
    ImageTransform,
    Sample,
    SampleDraw,
    TrainingData,
    decode_image,
    stacked,
    to_tensor,
)
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
    """A crop of an image for CLIP and for the generator, with noise, of a sample or of a batch (B, ...).

    Attributes:
        images: Image for CLIP, uint8 (3, S, S).
        target_images: Image for the generator, uint8 (3, G, G). None with cached latents.
        target_latents: Cached latents of the generator's image, (C, h, h), or None.
        latent_noise: unit-normal noise that samples the VAE's posterior, (C, h, h). None takes its mean.
        noise: unit-normal noise, (N, C, h, h).
        times: Diffusion times in [0, 1), (N,).
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

    Attributes:
        patch_draws: Uniform numbers that choose the patches, (num_draws,), or as many for each time. None without such
            a choice.
        views: Random crop of `images`, uint8 (3, S, S). Only present if the loss compares it.
    """

    patch_draws: Tensor | None = None
    views: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PriorInputs(ImageInputs):
    """Inputs of `diva.prior`.

    Attributes:
        tokens: Tokens of a caption, (L,).
        is_text: Whether the caption is the condition instead of the image, bool.
        is_empty: Whether the condition is dropped, bool.
        condition_noise: unit-normal noise, (D,).
    """

    tokens: Tensor
    is_text: Tensor
    is_empty: Tensor
    condition_noise: Tensor


@dataclass(frozen=True)
class ImageUse:
    """Images or cached latents of a sample, as in `ImageInputs`."""

    images: Tensor
    target_images: Tensor | None = None
    target_latents: Tensor | None = None


@dataclass(frozen=True)
class MakeImageInputs(BatchMake[Image.Image | ImageUse, ImageInputs]):
    """Makes `ImageInputs`. Both images are resized from the decoded image with antialiasing, as in evaluation.

    Attributes:
        transform: Makes the generator's image.
        sampler: Draws noise and times.
        preprocess: CLIP's preprocessing.
        stored: Cached latents, used instead of the generator's image. `transform` must then make their crops.
        sample_latents: Draw noise for the VAE's posterior.
    """

    transform: ImageTransform
    sampler: NoiseSampler
    preprocess: Preprocess
    stored: StoredLatents | None = None
    sample_latents: bool = False

    def read(self, sample: Sample) -> Image.Image | ImageUse:
        """Decode the image of a sample, and resize it if no crop is drawn. Raises BadSample."""
        image = decode_image(sample.image, sample.key)
        return image if self.transform.is_random or self.stored else self._images(image, 0)

    def use(self, content: Image.Image | ImageUse, draw: SampleDraw) -> ImageUse:
        """Crop the image, or load its latents.

        Raises:
            BadSample: If it was unreadable when latents were cached.
        """
        if isinstance(content, ImageUse):
            return content
        if not self.stored:
            return self._images(content, draw.seed)
        crop_seed, latents = self.stored(draw)
        return ImageUse(self._clip_image(content, crop_seed), target_latents=latents)

    def join(self, uses: Sequence[ImageUse], draws: Sequence[SampleDraw]) -> ImageInputs:
        """Draw noise and times of a batch."""
        noise, times = self.sampler([draw.seed for draw in draws])
        latent_noise = None
        if self.sample_latents and not self.stored:
            latent_noise = torch.empty(len(draws), *noise.shape[2:])
            for row, draw in zip(latent_noise, draws, strict=True):
                torch.randn(row.shape, generator=torch.Generator().manual_seed(draw.seed ^ LATENT_STREAM), out=row)
        return ImageInputs(**vars(stacked(uses)), latent_noise=latent_noise, noise=noise, times=times)

    def _images(self, image: Image.Image, seed: int) -> ImageUse:
        return ImageUse(self._clip_image(image, seed), to_tensor(self.transform.apply(image, seed)))

    def _clip_image(self, image: Image.Image, seed: int) -> Tensor:
        preprocess = self.preprocess
        # Without random crops CLIP sees the image as in evaluation.
        if not self.transform.scale:
            return to_tensor(preprocess.fit(image))
        transform = replace(self.transform, size=preprocess.image_size, interpolation=preprocess.interpolation)
        return to_tensor(transform.apply(image, seed))


@dataclass(frozen=True)
class MakeTuneInputs(BatchMake[Image.Image | ImageUse, TuneInputs]):
    """Makes `TuneInputs`, with `num_draws` random numbers for the choice of patches, and a second crop by `view`."""

    images: MakeImageInputs
    num_draws: int = 0
    view: ImageTransform | None = None

    def read(self, sample: Sample) -> Image.Image | ImageUse:
        """Decode the image of a sample, as `MakeImageInputs`."""
        return self.images.read(sample)

    def use(self, content: Image.Image | ImageUse, draw: SampleDraw) -> ImageUse:
        """Crop the image, or load its latents, as `MakeImageInputs`."""
        return self.images.use(content, draw)

    def join(self, uses: Sequence[ImageUse], draws: Sequence[SampleDraw]) -> TuneInputs:
        """Draw noise, times, patches and second crops of a batch."""
        inputs = self.images.join(uses, draws)
        patch_draws = views = None
        if self.num_draws:
            patch_draws = torch.empty(len(draws), self.num_draws)
            for row, draw in zip(patch_draws, draws, strict=True):
                torch.rand(row.shape, generator=torch.Generator().manual_seed(draw.seed ^ PATCH_STREAM), out=row)
        if self.view:
            crops = []
            for image, draw in zip(inputs.images, draws, strict=True):
                first = Image.fromarray(image.permute(1, 2, 0).numpy())
                crops.append(to_tensor(self.view.apply(first, draw.seed ^ VIEW_STREAM)))
            views = torch.stack(crops)
        return TuneInputs(**vars(inputs), patch_draws=patch_draws, views=views)


@dataclass(frozen=True)
class CaptionedImage:
    """An image before or after its crop, and its captions in the language of the training."""

    image: Any
    captions: list[str]


@dataclass(frozen=True)
class MakePriorInputs(BatchMake[CaptionedImage, PriorInputs]):
    """Makes `PriorInputs`. If an image has several captions, one is drawn. With `text_share` 0 it needs none.

    Attributes:
        images: Makes the images.
        tokenize: CLIP's tokenizer.
        language: Language of the captions.
        embed_dim: Width D of the joint space.
        text_share: Probability that the caption is the condition.
        dropout: Probability that the condition is dropped.
    """

    images: MakeImageInputs
    tokenize: Callable[[list[str]], Tensor]
    language: str
    embed_dim: int
    text_share: float
    dropout: float

    def read(self, sample: Sample) -> CaptionedImage:
        """Decode the image of a sample, and find its captions.

        Raises:
            BadSample: If it has no caption in the language, or its image is unreadable.
        """
        captions = sample.texts.get(self.language) or ([] if self.text_share else [""])
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({self.language})")
        return CaptionedImage(self.images.read(sample), captions)

    def use(self, content: CaptionedImage, draw: SampleDraw) -> CaptionedImage:
        """Crop the image, or load its latents, as `MakeImageInputs`."""
        return CaptionedImage(self.images.use(content.image, draw), content.captions)

    def join(self, uses: Sequence[CaptionedImage], draws: Sequence[SampleDraw]) -> PriorInputs:
        """Draw captions, conditions, noise and times of a batch."""
        noise = np.empty((len(draws), self.embed_dim), np.float32)
        captions, conditions = [], []
        for row, use, draw in zip(noise, uses, draws, strict=True):
            # All four draws are made for each sample, whatever is used, so that no setting changes another draw.
            rng = np.random.default_rng([draw.seed, CONDITION_STREAM])
            captions.append(use.captions[rng.integers(len(use.captions))])
            rng.standard_normal(dtype=np.float32, out=row)
            conditions.append((rng.random() < self.text_share, rng.random() < self.dropout))
        is_text, is_empty = torch.tensor(conditions).unbind(dim=1)
        return PriorInputs(
            **vars(self.images.join([use.image for use in uses], draws)),
            tokens=self.tokenize(captions),
            is_text=is_text,
            is_empty=is_empty,
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
        data: Data of the training run.
        device: Device of the batches.
        num_batches: Largest number of batches. A small dataset gives fewer.
        batch_size: Samples per batch. A smaller dataset gives one batch.
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
        [(epoch, index)] = order.of_epochs(position, position + 1)
        try:
            sample = data.source.sample(index, epoch)
            yield sample, data.make(sample, SampleDraw.of(data.seed, 0, index))
        except BadSample:
            continue
