"""Random access to the pictures, objects and label maps of an `AnnotatedImages`."""

# H, W height and width, N objects

from __future__ import annotations

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
    """The samples of a dataset, numbered as `open_dataset` numbers them. Masks are decoded when they are needed."""

    def __init__(self, dataset: AnnotatedImages) -> None:
        """Read the tables.

        Raises:
            UserError: a table is missing, damaged, or does not fit the images.
        """
        self.dataset = dataset
        self.tables: AnnotationTables = read_tables(dataset.path)
        if dataset.has_images and len(self.source) != len(self):
            raise UserError(f"{dataset.path}: {len(self.source)} images, {len(self)} in its annotations")

    def __reduce__(self) -> tuple[Any, ...]:
        return AnnotatedSource, (self.dataset,)  # a worker process reads the tables again, which may be large

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

    @cached_property
    def image_ids(self) -> list[int]:
        """Id of each image in its source, as files of results name it."""
        return self.tables.column("image_id")

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image."""
        return list(zip(self.tables.column("width"), self.tables.column("height"), strict=True))

    def image(self, number: int) -> Image.Image:
        """Decode an image to RGB, turned by its EXIF orientation if its annotations are.

        Raises:
            BadSample: the image cannot be used.
        """
        return self.decode(number, self.source[number].image)

    def decode(self, number: int, data: bytes) -> Image.Image:
        """Decode the bytes of an image, which a loader has read, as `picture` does."""
        where = self.source.where(number)
        image = decode_image(data, where)
        if not self.tables.images["upright"][number].as_py():
            return image
        image.getexif().update(open_image(data, where).getexif())
        return ImageOps.exif_transpose(image)

    def objects(self, number: int) -> ObjectArrays:
        """Return the objects of an image."""
        return self.tables.of_image(number)

    def masks(self, number: int, objects: ObjectArrays | None = None) -> NDArray[np.bool_]:
        """Decode the masks of an image's objects, or of some of them, (N, H, W); an object without one has its box."""
        width, height = self.sizes[number]
        found = self.objects(number) if objects is None else objects
        masks = np.zeros((len(found), height, width), dtype=bool)
        for place, (counts, box) in enumerate(zip(found.counts, found.boxes, strict=True)):
            if counts is not None:
                masks[place] = decode_mask(counts, height, width)
            else:
                left, top, right, bottom = np.rint(box).astype(int).tolist()
                masks[place, top:bottom, left:right] = True
        return masks

    def semantic(self, number: int) -> NDArray[np.int16]:
        """Return the class of each pixel, -1 where it is unlabelled, (H, W).

        Raises:
            UserError: the dataset has no semantic labels.
            BadSample: the label map cannot be read.
        """
        if self.dataset.map_classes:
            table = np.full(1 << 8, IGNORED, dtype=np.int16)
            table[: len(self.dataset.map_classes)] = np.maximum(self.dataset.map_classes, IGNORED)
            return np.asarray(table[read_map(self.tables.images["label_map"][number].as_py())])
        if "semantic" not in self.dataset.labels:
            raise UserError(f"{self.dataset.path}: no semantic labels; it has {', '.join(self.dataset.labels)}")
        segments, objects = self._painted(number)
        ground = IGNORED if self.dataset.background is None else self.dataset.background
        # A crowd is a region of one class, so it counts in the semantic map.
        return np.asarray(np.append(objects.labels, ground).astype(np.int16)[segments])

    def panoptic(self, number: int) -> tuple[NDArray[np.int16], ObjectArrays]:
        """Return the number of each pixel's segment, -1 where it is unlabelled, (H, W), and the segments.

        Raises:
            UserError: the dataset has no panoptic labels.
        """
        if "panoptic" not in self.dataset.labels:
            raise UserError(f"{self.dataset.path}: no panoptic labels; it has {', '.join(self.dataset.labels)}")
        return self._painted(number)

    def _painted(self, number: int) -> tuple[NDArray[np.int16], ObjectArrays]:
        objects = self.objects(number)
        width, height = self.sizes[number]
        segments = np.full((height, width), -1, dtype=np.int16)
        for place, mask in enumerate(self.masks(number, objects)):
            segments[mask] = place
        return segments, objects
