"""Crops with the masks and classes of their segments, for training a segmenter."""

# M segments, S side of a crop

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data import BadSample, Ragged, Sample, SampleDraw
from vfm.data.annotated import IGNORED, AnnotatedSource, ObjectArrays
from vfm_eva.dense.augment import Placement, distort, draw_distortion, draw_placement, place_image, place_objects
from vfm_eva.dense.crops import draw_crop, place_labels
from vfm_eva.dense.segment.stages import SegmentAugmentation

NUM_TRIES = 10  # most crops drawn from an image to find one with a segment


@dataclass(frozen=True)
class SegmentInputs:
    """A crop with its segments, or a batch.

    Attributes:
        images: uint8, (B, 3, S, S).
        labels: Class of each segment, (M,) for each crop.
        masks: Masks of the segments with eight pixels of a row packed in a byte, uint8 (M, S, S / 8) for each crop.
        semantic: Class of each pixel, -1 where it is unlabelled, int16 (B, S, S). None unless the task is semantic.
    """

    images: Tensor
    labels: Ragged
    masks: Ragged
    semantic: Tensor | None = None


@dataclass(frozen=True)
class MakeSegments:
    """Creates the inputs of a sample, with all random numbers drawn from the draw's seed.

    Attributes:
        source: Images with their annotations.
        task: Semantic, instance or panoptic.
        side: Side of the crop in pixels, S.
        augmentation: Ranges of the draws.
        max_segments: Most segments per crop. If there are more, the largest are kept.
        with_masks: Whether to create masks. Otherwise there is only the semantic map.
    """

    source: AnnotatedSource
    task: str
    side: int
    augmentation: SegmentAugmentation
    max_segments: int
    with_masks: bool = True

    def __call__(self, sample: Sample, draw: SampleDraw) -> SegmentInputs:
        """Create the inputs of a sample. Raises BadSample."""
        rng = np.random.default_rng(draw.seed)
        image = self.source.decode(draw.index, sample.image)
        semantic = None
        if self.task == "semantic":
            known = self.source.semantic(draw.index)
            _check_size(image, known.shape, sample.key)
            settings = self.augmentation
            placement = draw_crop(known, self.side, settings.scale, settings.flip, rng, max_share=settings.max_share)
            semantic = place_labels(known, placement)
            if self.with_masks:
                labels, masks = segments_of(semantic)
            else:
                labels, masks = _no_segments(self.side)
        else:
            placement, labels, masks = self._objects(draw.index, image, sample.key, rng)
        crop = place_image(image, placement)
        if self.augmentation.photometric:
            crop = distort(crop, draw_distortion(rng))
        rows = largest(masks, self.max_segments)
        if semantic is None:
            pixel_labels = None
        else:
            pixel_labels = torch.from_numpy(semantic.astype(np.int16))
        return SegmentInputs(
            crop,
            Ragged((torch.from_numpy(labels[rows]),)),
            # Eight pixels a byte: masks of a batch travel between processes and to the device.
            Ragged((torch.from_numpy(np.packbits(masks[rows], axis=-1)),)),
            pixel_labels,
        )

    def _objects(
        self, index: int, image: Image.Image, key: str, rng: np.random.Generator
    ) -> tuple[Placement, NDArray[np.int64], NDArray[np.bool_]]:
        """Draw a crop that shows a segment. If ten crops show none, the last crop is used."""
        width, height = self.source.sizes[index]
        _check_size(image, (height, width), key)
        objects = self.source.objects(index)
        background = self.source.dataset.background
        if self.task == "instance":
            objects = objects[np.array(self.source.dataset.things, dtype=bool)[objects.labels]]
        for _ in range(NUM_TRIES):
            placement = draw_placement((width, height), self.side, self.augmentation.scale, self.augmentation.flip, rng)
            placed = place_objects(objects, placement, with_masks=True)
            labels = placed.labels
            masks = np.asarray(placed.masks)
            if len(labels):
                break
        if self.task == "panoptic" and background is not None:
            taken = np.concatenate([masks, _without_label(objects, placement)]).any(axis=0)
            rest = np.zeros((1, self.side, self.side), dtype=bool)
            across, down = placement.covered
            rest[0, :down, :across] = ~np.asarray(taken)[:down, :across]
            labels = np.append(labels, background)
            masks = np.concatenate([masks, rest])
        return placement, labels, masks


def _without_label(objects: ObjectArrays, placement: Placement) -> NDArray[np.bool_]:
    """Crop the masks of crowds and ignored objects. They are neither targets nor background."""
    hidden = objects[objects.crowd | objects.ignored]
    never = np.zeros(len(hidden), dtype=bool)
    return np.asarray(place_objects(replace(hidden, crowd=never, ignored=never), placement, with_masks=True).masks)


def segments_of(semantic: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Split a semantic map into its classes, (M,), and the pixels of each class, (M, S, S)."""
    labels = np.unique(semantic)
    labels = labels[labels != IGNORED]
    return labels, semantic == labels[:, None, None]


def largest(masks: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Find the `count` masks with the most pixels, as ascending indices."""
    if len(masks) <= count:
        return np.arange(len(masks))
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    return np.sort(order[:count])


def unpack_masks(packed: Tensor, side: int) -> Tensor:
    """Unpack masks to float32, (..., S, S / 8) to (..., S, S)."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :side].float()


def count_crowded(source: AnnotatedSource, task: str, num_queries: int) -> int:
    """Count the images with more segments than queries.

    Label maps are not read, so semantic tasks count 0.

    Args:
        source: Annotated images.
        task: Kind of segmentation.
        num_queries: Number of queries.
    """
    if task == "semantic":
        return 0
    objects = source.tables.all
    known = ~(objects.crowd | objects.ignored)
    if task == "instance":
        known &= np.array(source.dataset.things, dtype=bool)[objects.labels]
    counts = np.bincount(objects.image[known], minlength=len(source))
    counts = counts + int(task == "panoptic" and source.dataset.background is not None)
    return int((counts > num_queries).sum())


def most_segments(source: AnnotatedSource, task: str) -> int:
    """Compute an upper bound on the number of segments in a crop."""
    if task == "semantic":
        return len(source.dataset.class_names)
    counts = np.bincount(source.tables.all.image, minlength=1)
    return int(counts.max()) + int(source.dataset.background is not None)


def _no_segments(side: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return np.zeros(0, dtype=np.int64), np.zeros((0, side, side), dtype=bool)


def _check_size(image: Image.Image, size: tuple[int, ...], key: str) -> None:
    if (image.height, image.width) != tuple(size):
        raise BadSample("wrong_size", key)
