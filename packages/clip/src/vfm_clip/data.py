"""Make the training samples of CLIP from images and captions."""

# n samples, S side of the image, L context length

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data import (
    BadSample,
    BatchMake,
    ImageTransform,
    Mixture,
    Sample,
    SampleDraw,
    Source,
    TarStream,
    TrainingData,
    decode_image,
    open_balanced,
    open_dataset,
    open_stream,
    require_column,
    to_tensor,
    weight_of,
)
from vfm.eval import CaptionedImage, images_panel
from vfm.models import ClipModel, Preprocess
from vfm.plugin import ImagesPanel, PairDataset, TarList
from vfm_clip.stages import ClipTrain, CropAugmentation

__all__ = ["ClipInputs", "EvalTransform", "MakePair", "first_samples_panel", "language_weights", "training_data"]

_CAPTION_STREAM = 1  # separates the random stream of a sample's caption from the stream of its crop
NUM_IMAGES = 16  # in the report
MAX_CAPTION = 160  # characters in the report


@dataclass(frozen=True)
class ClipInputs:
    """Image-caption pairs. `MakePair` makes a single pair (without the n), and batches have n."""

    images: Tensor  # (n, 3, S, S) uint8
    tokens: Tensor  # (n, L)
    uid: Tensor | None = None  # (n,) int64, to find repeated samples
    weight: Tensor | None = None  # (n,) float32, weights of the pairs in the loss


class Transform(Protocol):
    """Makes the model's image from the bytes of a file."""

    def read(self, data: bytes, where: str = "") -> Any:
        """Decode an image.

        Args:
            data: Bytes of the file.
            where: Its address, for messages.

        Raises:
            BadSample: If the image cannot be decoded.
        """
        ...

    def draw(self, decoded: Any, seed: int) -> Tensor:
        """Turn a decoded image into the model's input.

        Args:
            decoded: Result of `read`.
            seed: Seed of the random crop.

        Returns:
            uint8 (3, S, S).
        """
        ...


@dataclass(frozen=True)
class EvalTransform:
    """Preprocesses images as in evaluation, without random draws."""

    preprocess: Preprocess

    def read(self, data: bytes, where: str = "") -> Tensor:
        """Decode and preprocess an image to uint8, (3, S, S).

        Args:
            data: Bytes of the file.
            where: Its address, for messages.

        Raises:
            BadSample: If the image cannot be decoded.
        """
        return to_tensor(self.preprocess.fit(decode_image(data, where)))

    def draw(self, decoded: Tensor, seed: int) -> Tensor:
        """Return the preprocessed image."""
        return decoded


@dataclass(frozen=True)
class PairContent:
    """The decoded content of a sample.

    Attributes:
        image: The decoded image. After `use`, the cropped one, uint8 (3, S, S).
        captions: All captions, by language.
        uid: Hash of the sample's uid.
        weight: Weight of the pair in the loss.
    """

    image: Any
    captions: Mapping[str, list[str]]
    uid: int
    weight: float


@dataclass(frozen=True)
class MakePair(BatchMake[PairContent, ClipInputs]):
    """Make the inputs of image-text samples.

    Each sample gets a random crop and a random caption. Both are drawn from the seed of the draw.

    Attributes:
        transform: An `ImageTransform` or an `EvalTransform`.
        tokenize: The model's tokenizer.
        weights: Languages to draw captions from, with their weights. If a sample lacks one, its caption is drawn from
            the others.
        weight: Column with the weight of the pair. None: all pairs are equal.
    """

    transform: Transform
    tokenize: Callable[[list[str]], Tensor]
    weights: Mapping[str, float]
    weight: str | None = None

    def read(self, sample: Sample) -> PairContent:
        """Decode the image, and find the captions.

        Raises:
            BadSample: If the sample has no caption in these languages, or its image cannot be read.
        """
        captions = self._captions(sample)  # before the image: a sample without one is then found without decoding
        image = self.transform.read(sample.image, sample.key)
        weight = weight_of(sample, self.weight) if self.weight else 1.0
        return PairContent(image, captions, _uid_hash(sample.uid), weight)

    def use(self, content: PairContent, draw: SampleDraw) -> PairContent:
        """Crop the image."""
        return replace(content, image=self.transform.draw(content.image, draw.seed))

    def join(self, uses: Sequence[PairContent], draws: Sequence[SampleDraw]) -> ClipInputs:
        """Draw a caption for each image, and tokenize the captions."""
        images = []
        captions = []
        uids = []
        weights = []
        for use, draw in zip(uses, draws, strict=True):
            images.append(use.image)
            captions.append(self._drawn(use.captions, draw.seed))
            uids.append(use.uid)
            weights.append(use.weight)
        weight = torch.tensor(weights) if self.weight else None
        return ClipInputs(torch.stack(images), self.tokenize(captions), torch.tensor(uids), weight)

    def caption(self, sample: Sample, seed: int) -> str:
        """Draw a language by its weight, then a caption in this language uniformly.

        Raises:
            BadSample: If the sample has no caption in these languages.
        """
        return self._drawn(self._captions(sample), seed)

    def _captions(self, sample: Sample) -> dict[str, list[str]]:
        captions = {language: sample.texts[language] for language in self.weights if sample.texts.get(language)}
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({', '.join(self.weights)})")
        return captions

    def _drawn(self, captions: Mapping[str, list[str]], seed: int) -> str:
        languages = list(captions)
        texts = captions[languages[0]]
        if len(languages) == len(texts) == 1:
            return texts[0]  # the usual case; creating a generator would take longer than everything else
        draw = np.random.default_rng([seed, _CAPTION_STREAM])
        if len(languages) > 1:
            weights = np.array([self.weights[language] for language in languages])
            texts = captions[languages[int(draw.choice(len(languages), p=weights / weights.sum()))]]
        return texts[draw.integers(len(texts))]


def _uid_hash(uid: str) -> int:
    # One bit less than the digest, so that the number fits a signed int64.
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest()) >> 1


def language_weights(language: str | Mapping[str, float] | None, first: PairDataset) -> dict[str, float]:
    """Choose the languages to draw captions from.

    Args:
        language: A language, or several with their weights. Default: the first language of `first`.
        first: First dataset of the training.

    Returns:
        Weight of each language.
    """
    if isinstance(language, Mapping):
        return dict(language)
    return {language or first.languages[0]: 1.0}


def training_data(
    config: ClipTrain, datasets: Sequence[PairDataset], clip: ClipModel, weights: Mapping[str, float]
) -> tuple[TrainingData[ClipInputs], MakePair]:
    """Build the batches of a training run, and the function that makes their inputs.

    Args:
        config: Configuration of the training.
        datasets: One dataset for each of `config.portions`.
        clip: The model, for its image size, resizing and tokenizer.
        weights: Languages to draw captions from, with their weights.
    """
    make = MakePair(_transform(config.augmentation, clip.preprocess), clip.tokenizer, weights, config.weight)
    sources = _open_all(config, datasets, next(iter(weights)))
    for source, portion in zip(sources, config.portions, strict=True):
        if config.weight:
            require_column(source.index.spec, config.weight, f"{config.name}: weight: {portion.data}")
    indexed = [source for source in sources if isinstance(source, Source)]
    shares = [portion.weight for portion in config.portions]
    samples = sources[0] if len(sources) == 1 else Mixture(indexed, shares)
    return TrainingData.of(config, samples, make), make


def _open_all(config: ClipTrain, datasets: Sequence[PairDataset], language: str) -> Sequence[Source | TarStream]:
    """Open the datasets, or the single list of tars."""
    if config.loading.sampler == "balanced":
        return [open_balanced(data, seed=config.seed, language=language) for data in datasets]
    first = datasets[0]
    if isinstance(first, TarList) and len(datasets) == 1:
        return [open_stream(first)]
    return [open_dataset(data) for data in datasets]


def _transform(augmentation: CropAugmentation, preprocess: Preprocess) -> ImageTransform | EvalTransform:
    if not augmentation.crop_scale:
        return EvalTransform(preprocess)
    return ImageTransform(
        preprocess.image_size,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        interpolation=preprocess.interpolation,
        pixels=augmentation.pixels,
    )


def first_samples_panel(data: TrainingData[ClipInputs], make: MakePair, directory: Path) -> ImagesPanel:
    """Show the samples of the first step, cropped and captioned as in training.

    Args:
        data: Batches of the training run.
        make: Function that makes their inputs.
        directory: Folder to write the images into.
    """
    shown = list(islice(_first_samples(data, make), NUM_IMAGES))
    note = f"The first {len(shown)} samples of the first step, after augmentation, with the caption drawn for each."
    return images_panel(directory, "seen", "First training samples", shown, order=5, note=note)


def _first_samples(data: TrainingData[ClipInputs], make: MakePair) -> Iterator[CaptionedImage]:
    """Yield the samples of step 0 in training order. Bad samples are skipped, as the training reports them."""
    for epoch, index in data.order().of_epochs(0, data.global_batch_size):
        seed = SampleDraw.of(data.seed, 0, index).seed
        try:
            sample = data.source.sample(index, epoch)
            caption = make.caption(sample, seed)
            pixels = make.transform.draw(make.transform.read(sample.image, sample.key), seed).permute(1, 2, 0).numpy()
        except BadSample:
            continue
        short = caption if len(caption) <= MAX_CAPTION else caption[:MAX_CAPTION] + "…"
        yield CaptionedImage(Image.fromarray(pixels), short)
