"""Filter by the size of a picture, as the header of its file tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vfm_curation.filters.base import LocalFilter

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.filters.base import Bools


class ImageSize(LocalFilter):
    """Drops small and narrow pictures. The pixels are not decoded.

    Source of the defaults: Gadre et al. 2023, DataComp (arXiv:2304.14108), basic filtering.
    """

    type: Literal["image_size"] = Field("image_size", description="a picture that is too small or too narrow")
    min_side: int = Field(200, ge=1, description="fewest pixels of the shorter side; DataComp: 200")
    max_aspect: float = Field(3.0, ge=1, description="longer side by shorter side, at most; DataComp: 3")

    unit = "image"
    measures = ("images",)

    def passes(self, table: pa.Table) -> Bools:
        """By the columns `width` and `height`."""
        import numpy as np

        width, height = table["width"].to_numpy(), table["height"].to_numpy()
        short, long = np.minimum(width, height), np.maximum(width, height)
        passes: Bools = (short >= self.min_side) & (long <= self.max_aspect * short)
        return passes
