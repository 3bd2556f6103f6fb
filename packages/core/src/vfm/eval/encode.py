"""A data set's images through several models at once: each picture is read and decoded one time."""

# N images, D width

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import Artifact, ClipCheckpoint, VisionCheckpoint
from vfm.config import UserError
from vfm.data import BadSample, Sample, Source
from vfm.data.images import decode_image
from vfm.eval.fingerprint import item_digest
from vfm.models import Preprocess, load_clip, load_vision, vision_preprocess
from vfm.stage import Context


class ImageEncoder(Protocol):
    """What makes one vector of each image."""

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Unit vectors, float32 (N, D) on the CPU."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """What also makes one of each text, in the same space: `vfm.models.ClipModel`."""

    module: nn.Module

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors, float32 (N, D) on the CPU."""
        ...


@dataclass(frozen=True)
class PooledVision:
    """A timm encoder: its pooled features before the head, and what its head says."""

    module: nn.Module
    preprocess: Preprocess

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Unit vectors, float32 (N, D) on the CPU."""

        def embed(pixels: Tensor) -> Tensor:
            tokens = self.module.forward_features(pixels)  # type: ignore[operator]
            pooled: Tensor = self.module.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
            return F.normalize(pooled.float(), dim=-1)

        return self._each(images, batch_size, embed)

    def logits(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """What the model's own head says, float32 (N, C) on the CPU."""
        return self._each(images, batch_size, lambda pixels: self.module(pixels).float())

    def _each(self, images: Sequence[Image.Image], batch_size: int, see: Callable[[Tensor], Tensor]) -> Tensor:
        device = next(self.module.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                parts.append(see(self.preprocess.inputs(images[start : start + batch_size], device)).cpu())
        return torch.cat(parts).clone()


def load_encoder(checkpoint: Artifact, device: torch.device) -> ImageEncoder:
    """The model of a ClipCheckpoint or a VisionCheckpoint, in evaluation mode."""
    if isinstance(checkpoint, ClipCheckpoint):
        return load_clip(checkpoint, device)
    assert isinstance(checkpoint, VisionCheckpoint), checkpoint
    module = load_vision(checkpoint, device=device).eval()
    return PooledVision(module, vision_preprocess(module))


def logit_scale(model: TextImageEncoder) -> float:
    """What the model multiplies cosines by to make logits of them."""
    log_scale: Tensor = model.module.logit_scale  # type: ignore[assignment]
    return float(log_scale.detach().exp())


def encode_texts(model: TextImageEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """Unit vectors, (M, D); a text that occurs often (web captions do) is encoded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return model.encode_texts(list(places), batch_size)[torch.tensor([places[text] for text in texts])]


@dataclass(frozen=True)
class Encoded:
    """The usable samples of a data set, in its order, and what each model made of their images.

    numbers: each sample's place in the data set, to read its picture again.
    samples: without their images.
    digests: of each sample, images included (`fingerprint.item_digest`).
    features: by the model's name, (N, D).
    """

    numbers: list[int]
    samples: list[Sample]
    digests: list[bytes]
    features: dict[str, Tensor]

    @property
    def keys(self) -> list[str]:
        """The samples' names."""
        return [sample.key for sample in self.samples]


@dataclass(frozen=True)
class Reading:
    """How a data set is read: images a forward pass, the share of bad samples that is borne, threads that decode."""

    batch_size: int = 64
    max_bad_fraction: float = 0.05
    threads: int = 1

    def check_bad(self, bad: Counter[str], total: int, items: str = "samples") -> None:
        """Stops where the bad ones of a data set, counted by reason, are too large a share of it.

        Raises:
            UserError: more than `max_bad_fraction`, or all.
        """
        if bad.total() > self.max_bad_fraction * total or bad.total() == total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items())) or "it is empty"
            limit = f"max_bad_fraction is {self.max_bad_fraction}"
            raise UserError(f"{bad.total()} of {total} {items} cannot be used ({limit}): {reasons}")


def encode_dataset(
    ctx: Context,
    source: Source,
    encoders: Mapping[str, ImageEncoder],
    reading: Reading,
    *,
    check: Callable[[Sample], None] = lambda sample: None,
) -> Encoded:
    """Encode all images of a data set; bad samples are skipped, counted and told.

    Args:
        ctx: is told of progress and of bad samples.
        source: the data set.
        encoders: models by name; all of them see the same pictures.
        reading: how to read.
        check: raises BadSample for what this evaluation cannot use (no caption in its language).

    Raises:
        UserError: too many bad samples, or no good one.
    """
    numbers: list[int] = []
    samples: list[Sample] = []
    digests: list[bytes] = []
    features: dict[str, list[Tensor]] = {name: [] for name in encoders}
    told: Counter[str] = Counter()
    seen = 0
    for batch in decoded_batches(source, reading, check):
        good = [(number, *item) for number, item in batch if not isinstance(item, BadSample)]
        for bad in (item for _, item in batch if isinstance(item, BadSample)):
            told[bad.reason] += 1
            ctx.skip(bad.reason, bad.where)
        numbers += [number for number, *_ in good]
        samples += [replace(sample, image=b"") for _, sample, *_ in good]
        digests += [digest for *_, digest in good]
        for name, encoder in encoders.items() if good else ():
            features[name].append(encoder.encode_images([image for _, _, image, _ in good], reading.batch_size))
        seen += len(batch)
        ctx.progress(seen, len(source), "images")
    reading.check_bad(told, len(source))
    return Encoded(numbers, samples, digests, {name: torch.cat(parts) for name, parts in features.items()})


Decoded = tuple[Sample, Image.Image, bytes] | BadSample


def decoded_batches(
    source: Source, reading: Reading, check: Callable[[Sample], None]
) -> Iterator[list[tuple[int, Decoded]]]:
    """Batches of (number, sample, picture and digest); the next batch is decoded while the caller works on this one."""

    def submit(number: int) -> Future[Decoded] | BadSample:
        try:
            sample = source[number]  # read here, in one thread: readers share file handles
            check(sample)
        except BadSample as bad:
            return bad
        return pool.submit(_decode, sample)

    def results(pending: Sequence[tuple[int, Future[Decoded] | BadSample]]) -> list[tuple[int, Decoded]]:
        return [(number, item.result() if isinstance(item, Future) else item) for number, item in pending]

    with ThreadPoolExecutor(max(1, reading.threads)) as pool:
        waiting: list[tuple[int, Future[Decoded] | BadSample]] = []
        for start in range(0, len(source), reading.batch_size):
            submitted = [(n, submit(n)) for n in range(start, min(start + reading.batch_size, len(source)))]
            if waiting:
                yield results(waiting)
            waiting = submitted
        if waiting:
            yield results(waiting)


def _decode(sample: Sample) -> Decoded:
    try:
        image = decode_image(sample.image, sample.key)
        return sample, image, item_digest([sample.key, sample.texts, sample.label], [sample.image])
    except BadSample as bad:
        return bad
