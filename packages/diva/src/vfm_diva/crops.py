"""Which part of a picture CLIP and the generator both see."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from vfm.config import Config
from vfm.interfaces import CropScale


class Crops(Config):
    """A random crop of each picture."""

    crop_scale: CropScale | None = Field(
        (0.9, 1.0), description="share of the area a random crop keeps; null: as in evaluation, nothing random"
    )
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.95, 1.05), description="narrowest and widest aspect of a random crop"
    )
