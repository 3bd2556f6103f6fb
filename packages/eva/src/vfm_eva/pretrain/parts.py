"""Parts of EVA's configurations: masks, the student's initialization and regularization, decoder, and packing."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import INCIDENTAL, Config, Part

Init = Literal["timm", "eva01", "eva02", "mae"]


class Mask(Part):
    """Base class of masks. `build(seeds, grid, num_masked)` returns (B, N) booleans, True = masked, a row per seed."""

    equal_counts: ClassVar[bool] = True  # every mask hides exactly `num_masked` patches

    ratio: float = Field(
        105 / 256,
        ge=0,
        lt=1,
        description="fraction of the patches that are masked; block: at most; 0: no mask, every patch is predicted",
    )


class BlockMask(Mask):
    """EVA's rectangles (BEiT). A mask may hide a few patches fewer than asked for."""

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
    """Initial weights and regularization of the student."""

    init: Init = Field("timm", description="initial weights: as in timm, or as in the code of EVA, EVA-02 or EVA-L")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="probability to skip the last block, falling linearly to 0 at the first"
    )
    patch_embed_grad: float = Field(
        1.0, gt=0, le=1, description="factor on the patch embedding's gradient; EVA-02 uses 0.1"
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


class NaFlex(Config):
    """Images of their own aspect ratio and resolution, packed into rows of tokens without padding."""

    seq_lens: list[Annotated[int, Field(ge=4)]] = Field(
        [256],
        min_length=1,
        description="most patches of an image, which is made smaller if it has more; of several numbers, each image"
        " draws one",
    )
    row_tokens: Annotated[int, INCIDENTAL] = Field(
        4096, ge=4, description="tokens of a row, which is a forward pass, at most; with the class token of each image"
    )
