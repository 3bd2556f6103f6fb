"""Random access to the images, objects and label maps of an `AnnotatedImages`."""

# H, W height and width, N objects

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vfm.base import UserError
from vfm.data.annotated.label_files import read_map
from vfm.data.annotated.masks import decode_mask
from vfm.data.annotated.records import IGNORED
from vfm.data.annotated.tables import AnnotationTables, ObjectArrays, read_tables
from vfm.data.index.source import Source, open_dataset
from vfm.data.samples.images import decode_image, open_image
from vfm.interfaces import AnnotatedImages


class AnnotatedSource:
    """Samples of a dataset, numbered as by `open_dataset`. Masks are decoded when they are needed."""

    def __init__(self, dataset: AnnotatedImages) -> None:
        """Read the tables.

        Raises:
            UserError: If a table is missing, damaged, or does not fit the images.
        """
        self.dataset = dataset
        self.tables: AnnotationTables = read_tables(dataset.path)
        if dataset.has_images and len(self.source) != len(self):
            raise UserError(f"{dataset.path}: {len(self.source)} images, {len(self)} in its annotations")

    def __reduce__(self) -> tuple[Any, ...]:
        return AnnotatedSource, (self.dataset,)  # worker processes read the tables again, as these may be large

    def __len__(self) -> int:
        return len(self.tables.images)

    @cached_property
    def source(self) -> Source:
        """The encoded images."""
        if not self.dataset.has_images:
            raise UserError(f"{self.dataset.path}: made with images: false; it has labels only")
        return open_dataset(self.dataset)

    @cached_property
    def keys(self) -> list[str]:
        """Key of each image."""
        return self.tables.column("key")

    def keys_of(self, numbers: Iterable[int]) -> list[str]:
        """Look up the keys of some images."""
        return [self.keys[number] for number in numbers]

    @cached_property
    def image_ids(self) -> list[int]:
        """Id of each image in its source, as used by result files."""
        return self.tables.column("image_id")

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image."""
        return list(zip(self.tables.column("width"), self.tables.column("height"), strict=True))

    def image(self, number: int) -> Image.Image:
        """Decode an image to RGB, and apply its EXIF orientation if the annotations refer to the rotated image.

        Raises:
            BadSample: If the image cannot be used.
        """
        return self.decode(number, self.source[number].image)

    def decode(self, number: int, data: bytes) -> Image.Image:
        """Decode an image as `image` does, from bytes that a loader has already read."""
        where = self.source.where(number)
        image = decode_image(data, where)
        if not self.tables.images["upright"][number].as_py():
            return image
        image.getexif().update(open_image(data, where).getexif())
        return ImageOps.exif_transpose(image)

    def objects(self, number: int) -> ObjectArrays:
        """Look up the objects of an image."""
        return self.tables.of_image(number)

    def masks(self, number: int, objects: ObjectArrays | None = None) -> NDArray[np.bool_]:
        """Decode the masks of an image's objects, or of the given ones, (N, H, W).

        For an object without a mask, its box is filled.
        """
        width, height = self.sizes[number]
        if objects is None:
            objects = self.objects(number)
        masks = np.zeros((len(objects), height, width), dtype=bool)
        for index, (counts, box) in enumerate(zip(objects.counts, objects.boxes, strict=True)):
            if counts is not None:
                masks[index] = decode_mask(counts, height, width)
            else:
                left, top, right, bottom = np.rint(box).astype(int).tolist()
                masks[index, top:bottom, left:right] = True
        return masks

    def semantic(self, number: int) -> NDArray[np.int16]:
        """Read the class of each pixel, (H, W), with -1 for unlabelled pixels.

        Raises:
            UserError: If the dataset has no semantic labels.
            BadSample: If the label map cannot be read.
        """
        if self.dataset.map_classes:
            table = np.full(1 << 16, IGNORED, dtype=np.int16)  # maps have 8 or 16 bits
            table[: len(self.dataset.map_classes)] = np.maximum(self.dataset.map_classes, IGNORED)
            return np.asarray(table[read_map(self.tables.images["label_map"][number].as_py())])
        if "semantic" not in self.dataset.labels:
            raise UserError(f"{self.dataset.path}: no semantic labels; it has {', '.join(self.dataset.labels)}")
        segments, objects = self._painted(number)
        ground = IGNORED if self.dataset.background is None else self.dataset.background
        # A crowd is a region of one class, so it counts in the semantic map.
        return np.asarray(np.append(objects.labels, ground).astype(np.int16)[segments])

    def panoptic(self, number: int) -> tuple[NDArray[np.int16], ObjectArrays]:
        """Read the segment number of each pixel, (H, W), with -1 for unlabelled pixels, and the segments.

        Raises:
            UserError: If the dataset has no panoptic labels.
        """
        if "panoptic" not in self.dataset.labels:
            raise UserError(f"{self.dataset.path}: no panoptic labels; it has {', '.join(self.dataset.labels)}")
        return self._painted(number)

    def _painted(self, number: int) -> tuple[NDArray[np.int16], ObjectArrays]:
        objects = self.objects(number)
        width, height = self.sizes[number]
        segments = np.full((height, width), -1, dtype=np.int16)
        for index, mask in enumerate(self.masks(number, objects)):
            segments[mask] = index
        return segments, objects
