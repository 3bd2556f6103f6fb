"""From a sample to what a masked step takes: its picture at the student's and the teacher's size, and its own mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vfm.data.images import decode_image
from vfm.data.sample import Sample
from vfm.data.transforms import ImageTransform, to_tensor
from vfm_kernels import block_mask, block_mask_exact, random_mask

MaskKind = Literal["block", "block_exact", "random"]
MASKS = {"block": block_mask, "block_exact": block_mask_exact, "random": random_mask}


@dataclass(frozen=True)
class MakeMasked:
    """Makes `images` (3, S, S) uint8 and `bool_mask` (N,) of a sample; crop and mask are drawn from its own seed.

    A teacher of another size gets the same part of the picture as `teacher_images` (3, S', S'): one box, cut out of the
    original and resized twice, as in EVA.

    transform: the student's way with a picture.
    grid: rows and columns of the student's patches.
    num_masked: patches to mask; `block` masks may have a few less.
    mask: which of `MASKS`.
    teacher_size: side of the teacher's pictures; default: the student's.
    """

    transform: ImageTransform
    grid: tuple[int, int]
    num_masked: int
    mask: MaskKind = "block"
    teacher_size: int | None = None

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample; raises BadSample."""
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        tensors = {
            "images": to_tensor(self.transform.apply(image, seed)),
            # The same seed as the crop's: the masks' generator (Philox) is another one, so its draws are too.
            "bool_mask": MASKS[self.mask]([seed], self.grid, self.num_masked)[0],
        }
        if self.teacher_size not in (None, self.transform.size):
            larger = replace(self.transform, size=self.teacher_size)
            tensors["teacher_images"] = to_tensor(larger.apply(image, seed))
        return tensors
