"""Which of the vision tower's weights are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vfm.config import Config


class WholeTower(Config):
    """All of it (DIVA, un2CLIP)."""

    type: Literal["tower"] = Field("tower", description="the whole vision tower (DIVA, un2CLIP)")


class LastBlocks(Config):
    """The last blocks, and what comes after them."""

    type: Literal["last_blocks"] = Field("last_blocks", description="the last blocks, and what comes after them")
    blocks: int = Field(4, ge=1, description="how many")


class Lora(Config):
    """Low-rank changes of every linear layer in the blocks, merged into the weights at the end (GenHancer)."""

    type: Literal["lora"] = Field(
        "lora", description="low-rank changes of the blocks' linear layers, merged at the end (GenHancer)"
    )
    rank: int = Field(16, ge=1, description="of each change")
    alpha: int = Field(16, ge=1, description="a change is alpha / rank times its two factors' product")


AnyUpdate = Annotated[WholeTower | LastBlocks | Lora, Field(discriminator="type")]
