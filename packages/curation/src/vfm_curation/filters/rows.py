"""Filters that need only the row of a text or image. They compute a mask of a shard's table: the rows that pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm_curation.filters.stages import CaptionLength, ImageSize, Language

Bools = NDArray[np.bool_]


def length_passes(config: CaptionLength, table: pa.Table) -> Bools:
    """Compare the columns `characters` and `words` with their bounds."""
    characters = table["characters"].to_numpy()
    words = table["words"].to_numpy()
    long_enough = (characters >= config.min_characters) & (words >= config.min_words)
    short_enough = (characters <= (config.max_characters or characters)) & (words <= (config.max_words or words))
    passes: Bools = long_enough & short_enough
    return passes


def size_passes(config: ImageSize, table: pa.Table) -> Bools:
    """Compare the columns `width` and `height` with their bounds."""
    width, height = table["width"].to_numpy(), table["height"].to_numpy()
    short = np.minimum(width, height)
    long = np.maximum(width, height)
    passes: Bools = (short >= config.min_side) & (long <= config.max_aspect * short)
    return passes


def language_passes(config: Language, table: pa.Table) -> Bools:
    """Check the columns `detected` and `detected_score`."""
    detected = table["detected"]
    if config.languages:
        right = pc.is_in(detected, pa.array(config.languages))
    else:
        right = pc.equal(detected, table["language"])
    passes: Bools = right.to_numpy() & (table["detected_score"].to_numpy() >= np.float32(config.min_score))
    return passes
