"""Samples for training a detector: a crop with its objects."""

# B images, N objects of an image, S side of the crop

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfm.data import BadSample, Ragged, Sample, SampleDraw
from vfm.data.annotated import AnnotatedSource, ObjectArrays
from vfm_eva.dense.augment import distort, draw_distortion, draw_placement, place_image, place_objects
from vfm_eva.dense.detect.objects import Size, TargetObjects
from vfm_eva.dense.detect.stages import DetectAugmentation


@dataclass(frozen=True)
class DetectionInputs:
    """A crop with its objects, or a batch.

    Attributes:
        images: uint8, (B, 3, S, S).
        sizes: Height and width of the part without padding, (B, 2).
        labels: Labels of each image, (N,).
        boxes: Boxes of each image, (N, 4).
        masks: Masks of each image, (N, S, S) bool. Missing in training without masks.
    """

    images: Tensor
    sizes: Tensor
    labels: Ragged
    boxes: Ragged
    masks: Ragged | None

    def truths(self) -> list[TargetObjects]:
        """Collect the objects of each image."""
        masks: Sequence[Tensor | None] = self.masks.parts if self.masks else [None] * len(self.labels.parts)
        return [TargetObjects(*image) for image in zip(self.labels.parts, self.boxes.parts, masks, strict=True)]

    def shapes(self) -> list[Size]:
        """List height and width of each image."""
        return [(height, width) for height, width in self.sizes.tolist()]


@dataclass(frozen=True)
class MakeDetection:
    """Creates the inputs of a sample, with all random numbers drawn from the draw's seed.

    Attributes:
        source: Images with their annotations.
        side: Side of the crop in pixels, S.
        augmentation: Ranges of the draws.
        with_masks: Whether to load masks.
        fill: Colour of the padding.
    """

    source: AnnotatedSource
    side: int
    augmentation: DetectAugmentation
    with_masks: bool
    fill: tuple[int, int, int]

    def __call__(self, sample: Sample, draw: SampleDraw) -> DetectionInputs:
        """Create the inputs of a sample. Raises BadSample."""
        image = self.source.decode(draw.index, sample.image)
        settings = self.augmentation
        # The annotations are in pixels of the listed size, so an image of another size would get wrong boxes.
        if image.size != self.source.sizes[draw.index]:
            raise BadSample("unreadable_image", sample.key)
        rng = np.random.default_rng(draw.seed)
        placement = draw_placement(image.size, self.side, settings.scale, settings.flip, rng)
        crop = place_image(image, placement, fill=self.fill)
        if settings.photometric:
            crop = distort(crop, draw_distortion(rng))
        objects = things_of(self.source, self.source.objects(draw.index))
        targets = place_objects(objects, placement, with_masks=self.with_masks)
        width, height = placement.covered
        if targets.masks is None:
            masks = None
        else:
            masks = Ragged((torch.from_numpy(targets.masks),))
        return DetectionInputs(
            crop,
            torch.tensor([height, width]),
            Ragged((torch.from_numpy(targets.labels),)),
            Ragged((torch.from_numpy(targets.boxes),)),
            masks,
        )


def things_of(source: AnnotatedSource, objects: ObjectArrays) -> ObjectArrays:
    """Select the objects whose classes have instances (things, not stuff)."""
    return objects[np.array(source.dataset.things, dtype=bool)[objects.labels]]
