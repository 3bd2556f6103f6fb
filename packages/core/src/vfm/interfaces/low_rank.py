"""Settings of LoRA, which every training that offers it shares; `vfm.models.LowRank` does it."""

from __future__ import annotations

from pydantic import Field

from vfm.base import Config


class LowRankSettings(Config):
    """Low-rank changes to the linear layers in the blocks, merged into the weights at the end.

    Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
    """

    rank: int = Field(16, ge=1, description="rank of each change")
    alpha: int = Field(16, ge=1, description="a change is alpha / rank times the product of its two factors")
