"""Samples of a training of a detector: a crop with its objects."""

# B images, N objects of an image, S side of the crop

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfm.data import BadSample, Ragged, Sample, SampleDraw
from vfm.data.annotated import AnnotatedSource, ObjectArrays
from vfm_eva.dense.augment import distort, draw_distortion, draw_placement, place_objects, place_picture
from vfm_eva.dense.detect.cascade import Size, Truth
from vfm_eva.dense.detect.stages import DetectAugmentation


@dataclass(frozen=True)
class DetectionInputs:
    """One crop with its objects, or a batch.

    Attributes:
        images: uint8, (B, 3, S, S).
        sizes: height and width of the part that is no padding, (B, 2).
        labels: of each image, (N,).
        boxes: of each image, (N, 4).
        masks: of each image, (N, S, S) bool; None in a training without masks.
    """

    images: Tensor
    sizes: Tensor
    labels: Ragged
    boxes: Ragged
    masks: Ragged | None

    def truths(self) -> list[Truth]:
        """Return the objects of each image."""
        masks: Sequence[Tensor | None] = self.masks.parts if self.masks else [None] * len(self.labels.parts)
        return [Truth(*one) for one in zip(self.labels.parts, self.boxes.parts, masks, strict=True)]

    def shapes(self) -> list[Size]:
        """Return height and width of each image."""
        return [(height, width) for height, width in self.sizes.tolist()]


@dataclass(frozen=True)
class MakeDetection:
    """Makes the inputs of one sample; everything random is drawn from the draw's seed.

    Attributes:
        source: the labels.
        side: S.
        augmentation: ranges of the draws.
        with_masks: whether masks are made.
        fill: colour of the padding.
    """

    source: AnnotatedSource
    side: int
    augmentation: DetectAugmentation
    with_masks: bool
    fill: tuple[int, int, int]

    def __call__(self, sample: Sample, draw: SampleDraw) -> DetectionInputs:
        """Return the inputs of one sample; raises BadSample."""
        picture, settings = self.source.decode(draw.index, sample.image), self.augmentation
        if picture.size != self.source.sizes[draw.index]:
            raise BadSample("unreadable_image", sample.key)
        rng = np.random.default_rng(draw.seed)
        placement = draw_placement(picture.size, self.side, settings.scale, settings.flip, rng)
        image = place_picture(picture, placement, fill=self.fill)
        if settings.photometric:
            image = distort(image, draw_distortion(rng))
        objects = things_of(self.source, self.source.objects(draw.index))
        found = place_objects(objects, placement, with_masks=self.with_masks)
        width, height = placement.covered
        return DetectionInputs(
            image,
            torch.tensor([height, width]),
            Ragged((torch.from_numpy(found.labels),)),
            Ragged((torch.from_numpy(found.boxes),)),
            None if found.masks is None else Ragged((torch.from_numpy(found.masks),)),
        )


def things_of(source: AnnotatedSource, objects: ObjectArrays) -> ObjectArrays:
    """Return the objects whose classes have instances."""
    return objects[np.array(source.dataset.things, dtype=bool)[objects.labels]]
