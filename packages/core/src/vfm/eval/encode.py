"""A data set's images through several models at once: each picture is read and decoded one time."""

# N images, D width

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import Artifact, ClipCheckpoint, VisionCheckpoint
from vfm.config import UserError
from vfm.data import BadSample, Sample, Source
from vfm.eval.decoding import decoded_batches
from vfm.eval.fingerprint import checkpoint_hash
from vfm.eval.kept_features import KeptFeatures
from vfm.models import ClipModel, Preprocess, load_clip, load_vision, vision_preprocess
from vfm.stage import Context

FEATURES_VERSION = 1  # raised by hand when a checkpoint's features of a picture change
ResizeMode = Literal["shortest", "longest", "squash"]


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
    features_key: str = ""  # as `LoadedClip`

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


@dataclass
class LoadedClip(ClipModel):
    """A CLIP model as its checkpoint says; `features_key` tells its image features from any others' (empty: no key)."""

    features_key: str = ""


def load_encoder(
    checkpoint: Artifact, device: torch.device, resize_mode: ResizeMode | None = None
) -> LoadedClip | PooledVision:
    """The model of a ClipCheckpoint or a VisionCheckpoint, in evaluation mode.

    Args:
        checkpoint: the artifact.
        device: where the model goes.
        resize_mode: how pictures that are not square come to its size; default: the checkpoint's own way.
    """
    if isinstance(checkpoint, ClipCheckpoint):
        clip = load_clip(checkpoint, device)
        preprocess = _resizing(clip.preprocess, resize_mode)
        parts = {part.name: getattr(clip, part.name) for part in fields(clip)}
        return LoadedClip(**{**parts, "preprocess": preprocess}, features_key=_key(checkpoint, preprocess))
    assert isinstance(checkpoint, VisionCheckpoint), checkpoint
    module = load_vision(checkpoint, device=device).eval()
    preprocess = _resizing(vision_preprocess(module), resize_mode)
    return PooledVision(module, preprocess, _key(checkpoint, preprocess))


def _resizing(preprocess: Preprocess, resize_mode: ResizeMode | None) -> Preprocess:
    return preprocess.model_copy(update={"resize_mode": resize_mode}) if resize_mode else preprocess


def _key(checkpoint: Artifact, preprocess: Preprocess) -> str:
    facts = f"{FEATURES_VERSION} {checkpoint_hash(checkpoint)} {preprocess.model_dump_json()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def logit_scale(model: TextImageEncoder) -> float:
    """What the model multiplies cosines by to make logits of them."""
    log_scale: Tensor = model.module.logit_scale  # type: ignore[assignment]
    return float(log_scale.detach().exp())


def encode_texts(model: TextImageEncoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """Unit vectors, (M, D); a text that occurs often (web captions do) is encoded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    features = model.encode_texts(list(places), batch_size)
    return features if len(places) == len(texts) else features[torch.tensor([places[text] for text in texts])]


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

    What all models know from an earlier evaluation (`kept_features`) is read instead of made.

    Args:
        ctx: is told of progress and of bad samples.
        source: the data set.
        encoders: models by name; all of them see the same pictures.
        reading: how to read.
        check: raises BadSample for what this evaluation cannot use (no caption in its language).

    Raises:
        UserError: too many bad samples, or no good one.
    """
    kept = {name: KeptFeatures.of(source, getattr(encoder, "features_key", "")) for name, encoder in encoders.items()}
    knows = {name: set(one.numbers.tolist()) for name, one in kept.items()}
    known = set.intersection(*knows.values()) if knows else set()
    first = next(iter(kept.values()), KeptFeatures())
    found: dict[int, tuple[Sample, bytes]] = {}
    told: Counter[str] = Counter()

    def skip(bad: BadSample) -> None:
        told[bad.reason] += 1
        ctx.skip(bad.reason, bad.where)

    for number in sorted(known):
        try:
            check(sample := source.facts(number))
            found[number] = (sample, first.digest(number))
        except BadSample as problem:
            skip(problem)
    made: dict[str, list[tuple[list[int], Tensor]]] = {name: [] for name in encoders}
    missing = [number for number in range(len(source)) if number not in known]
    seen = len(known)
    for batch in decoded_batches(source, reading, check, missing):
        good = [(number, *item) for number, item in batch if not isinstance(item, BadSample)]
        for bad in (item for _, item in batch if isinstance(item, BadSample)):
            skip(bad)
        found |= {number: (replace(sample, image=b""), digest) for number, sample, _, digest in good}
        for name, encoder in encoders.items():
            if new := {number: image for number, _, image, _ in good if number not in knows[name]}:
                made[name].append((list(new), encoder.encode_images(list(new.values()), reading.batch_size)))
        seen += len(batch)
        ctx.progress(seen, len(source), "images")
    reading.check_bad(told, len(source))
    for name, parts in made.items():
        if parts:
            new_numbers = [number for part, _ in parts for number in part]
            kept[name].update(new_numbers, [found[n][1] for n in new_numbers], torch.cat([part for _, part in parts]))
    numbers = sorted(found)
    features = {name: one.rows(numbers) for name, one in kept.items()}
    return Encoded(numbers, [found[n][0] for n in numbers], [found[n][1] for n in numbers], features)
