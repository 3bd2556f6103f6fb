"""Images of their own aspect ratio as strips of patches, which can be joined whatever their sizes."""

# N patches of an image, r rows and c columns of patches, p side of a patch

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data import FILTERS, BatchMake, Interpolation, Ragged, Sample, SampleDraw, decode_image, to_tensor
from vfm.models import Preprocess
from vfm_eva.pretrain.naflex.packing import Grid, by_grid, take

__all__ = ["MakeStrips", "NativeCrop", "SampleStrips", "StripOf", "images_by_grid", "native_grid", "patch_strip"]

ROUNDING = 1e-6  # so that a root of 14 minus an error of fp64 gives 14 patches


def native_grid(width: int, height: int, patch_size: int, seq_len: int) -> Grid:
    """Choose rows and columns of patches that keep an image's aspect ratio, at most `seq_len` patches in all.

    A smaller image is not enlarged, except to 2 x 2 patches, the fewest that masks need.
    """
    scale = min(1.0, patch_size * math.sqrt(seq_len / (width * height)))
    rows, columns = (max(2, int(side * scale / patch_size + ROUNDING)) for side in (height, width))
    return min(rows, seq_len // 2), min(columns, seq_len // 2)


def patch_strip(image: Tensor, patch_size: int) -> Tensor:
    """Lay the patches of an image, (3, r p, c p), out side by side, row by row: (3, p, N p)."""
    channels, height, width = image.shape
    size = patch_size
    return image.view(channels, height // size, size, width // size, size).transpose(1, 2).reshape(channels, size, -1)


def images_by_grid(strip: Tensor, grids: Sequence[Grid]) -> dict[Grid, Tensor]:
    """Cut a strip of several images, (3, p, T p), into batches of the images of each grid, (B, 3, r p, c p)."""
    channels, size, _ = strip.shape
    parts = torch.split(strip, [rows * columns * size for rows, columns in grids], dim=2)
    batches = {}
    for (rows, columns), numbers in by_grid(grids).items():
        images = torch.stack(take(parts, numbers)).view(-1, channels, size, rows, columns, size)
        batches[rows, columns] = images.transpose(2, 3).reshape(-1, channels, rows * size, columns * size)
    return batches


@dataclass(frozen=True)
class NativeCrop:
    """Random crops with the aspect ratio of their image.

    Attributes:
        patch_size: Side of the student's patches, in pixels.
        seq_lens: Most patches of a crop. Each crop draws one of them.
        scale: Smallest and largest fraction of the area that a crop keeps. None: the whole image.
        flip: Probability of a left-right flip.
    """

    patch_size: int
    seq_lens: tuple[int, ...]
    scale: tuple[float, float] | None
    flip: float

    def __call__(self, image: Image.Image, seed: int) -> tuple[Image.Image, Grid]:
        """Crop an image, and choose its rows and columns of patches."""
        rng = np.random.Generator(np.random.PCG64(seed))
        if self.scale:
            side = math.sqrt(rng.uniform(*self.scale))
            width, height = (max(1, round(length * side)) for length in image.size)
            left = int(rng.integers(image.width - width + 1))
            top = int(rng.integers(image.height - height + 1))
            image = image.crop((left, top, left + width, top + height))
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        seq_len = self.seq_lens[int(rng.integers(len(self.seq_lens)))]
        return image, native_grid(*image.size, self.patch_size, seq_len)


@dataclass(frozen=True)
class StripOf:
    """The strip that a model sees of a crop."""

    patch_size: int
    interpolation: Interpolation

    @classmethod
    def of(cls, preprocess: Preprocess, grid: Grid) -> StripOf:
        """Describe the strip of a model with this preprocessing and grid at its own size."""
        return cls(preprocess.image_size // grid[0], preprocess.interpolation)

    def __call__(self, image: Image.Image, grid: Grid) -> Tensor:
        """Resize a crop to rows and columns of patches, and lay them out, uint8 (3, p, N p)."""
        rows, columns = grid
        size = (columns * self.patch_size, rows * self.patch_size)
        return patch_strip(to_tensor(image.resize(size, FILTERS[self.interpolation])), self.patch_size)


@dataclass(frozen=True)
class SampleStrips:
    """A sample or a batch of samples before masks are drawn and rows are packed."""

    grid: Tensor  # (B, 2) int64: rows and columns
    mask_seed: Tensor  # (B,) int64
    strips: tuple[Ragged | None, ...]  # of the student, then of each teacher; None: the student's


@dataclass(frozen=True)
class MakeStrips(BatchMake[Image.Image, SampleStrips]):
    """Creates the strips of a sample.

    Attributes:
        crop: The crop, the same for student and teachers.
        student: The student's strip.
        teachers: The strip of each teacher.
    """

    crop: NativeCrop
    student: StripOf
    teachers: tuple[StripOf, ...]

    def read(self, sample: Sample) -> Image.Image:
        """Decode the image of a sample. Raises BadSample."""
        return decode_image(sample.image, sample.key)

    def use(self, image: Image.Image, draw: SampleDraw) -> SampleStrips:
        """Create the strips of an image."""
        # Crop and mask can share a seed because they hash it in different ways.
        crop, grid = self.crop(image, draw.seed)
        strips: list[Ragged | None] = [Ragged((self.student(crop, grid),))]
        for teacher in self.teachers:
            strips.append(None if teacher == self.student else Ragged((teacher(crop, grid),)))
        return SampleStrips(torch.tensor(grid), torch.tensor(draw.seed), tuple(strips))
