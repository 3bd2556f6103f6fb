"""From a picture to what a masked step takes: the picture at the student's size, and its own mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vfm.data.sample import Sample
from vfm.data.transforms import ImageTransform
from vfm_kernels import block_mask, block_mask_exact, random_mask

MaskKind = Literal["block", "block_exact", "random"]
MASKS = {"block": block_mask, "block_exact": block_mask_exact, "random": random_mask}
_MASK_STREAM = 0x6D61736B  # sets the seed of a sample's mask apart from that of its crop


@dataclass(frozen=True)
class MakeMasked:
    """Makes `images` (3, S, S) uint8 and `bool_mask` (N,) of a sample; crop and mask are drawn from its own seed."""

    transform: ImageTransform
    grid: tuple[int, int]
    num_masked: int
    mask: MaskKind = "block"

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample."""
        images = self.transform(sample.image, seed, sample.key)
        bool_mask = MASKS[self.mask]([seed ^ _MASK_STREAM], self.grid, self.num_masked)[0]
        return {"images": images, "bool_mask": bool_mask}
