"""Parts of the configurations of EVA: targets, teachers, masks, augmentations, the student's start and its decoder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    Config,
    Part,
)

Init = Literal["timm", "eva01", "eva02", "mae"]


class Mask(Part):
    """The masks. `build(seeds, grid, num_masked)` returns (B, N) booleans, True = masked, one row per seed."""

    equal_counts: ClassVar[bool] = True  # every mask hides exactly `num_masked` patches

    ratio: float = Field(105 / 256, gt=0, lt=1, description="fraction of the patches that are masked; block: at most")


class BlockMask(Mask):
    """EVA's rectangles (BEiT); a mask may hide a few patches fewer."""

    equal_counts: ClassVar[bool] = False
    type: Literal["block"] = Field("block", description="EVA's rectangles")
    work: ClassVar[str] = "vfm_eva.pretrain.masks:block_masks"


class BlockExactMask(Mask):
    """EVA's rectangles with an exact number of patches."""

    type: Literal["block_exact"] = Field("block_exact", description="EVA's rectangles with an exact count")
    work: ClassVar[str] = "vfm_eva.pretrain.masks:block_exact_masks"


class RandomMask(Mask):
    """Single patches (MAE)."""

    type: Literal["random"] = Field("random", description="single patches")
    work: ClassVar[str] = "vfm_eva.pretrain.masks:random_masks"


class Student(Config):
    """How the student starts and is regularised."""

    init: Init = Field("timm", description="initial weights: as in timm, or as in the code of EVA, EVA-02 or EVA-L")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability to skip the last block; falls linearly to 0 at the first"
    )
    patch_embed_grad: float = Field(
        1.0, gt=0, le=1, description="factor of the patch embedding's gradient; EVA-02 has 0.1"
    )


class Decoder(Config):
    """The decoder of `encode: visible`, which predicts the masked patches."""

    width: int = Field(512, ge=4, multiple_of=4, description="channels")
    depth: int = Field(4, ge=1, description="number of blocks")
    num_heads: int = Field(16, ge=1, description="attention heads of each block; must divide width")

    @model_validator(mode="after")
    def _whole_heads(self) -> Decoder:
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, {self.num_heads}; got {self.width}")
        return self
