"""Repeat factors: images with rare classes are repeated, by draws that depend on seed and epoch only."""

# N images, K classes

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vfm.data import Source
from vfm.data.annotated import ObjectArrays

Integers = NDArray[np.int64]


def repeat_factors(objects: ObjectArrays, num_images: int, num_classes: int, threshold: float) -> NDArray[np.float64]:
    """Compute how often an epoch repeats each image on average, (N,), at least 1.

    Args:
        objects: objects of all images.
        num_images: number of images, N.
        num_classes: number of classes, K.
        threshold: share of the images below which a class is rare.

    Source: Gupta et al. 2019, LVIS (arXiv:1908.03195), appendix B.3.
    """
    pairs = np.unique(np.stack([objects.image, objects.labels]), axis=1)
    share = np.bincount(pairs[1], minlength=num_classes) / num_images
    with np.errstate(divide="ignore"):
        # LVIS's rule (arXiv:1908.03195, section 5.4). An image counts by its rarest class.
        by_class = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[0], by_class[pairs[1]])
    return factors


class RepeatedEpochs:
    """`Epochs` of a source with repetitions: an image with factor r occurs r times on average, rounded up or down."""

    def __init__(self, source: Source, factors: NDArray[np.float64], seed: int) -> None:
        self.shard_sizes: Integers = source.shard_sizes
        self.factors, self.seed = factors, seed
        self._starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self._counts: tuple[int, Integers] | None = None
        self._ends: list[int] = []

    def at(self, position: int) -> tuple[int, int]:
        """Find the epoch at a position of the stream, and the position where the epoch begins."""
        while not self._ends or self._ends[-1] <= position:
            begin = self._ends[-1] if self._ends else 0
            self._ends.append(begin + int(self._of_epoch(len(self._ends)).sum()))
        epoch = int(np.searchsorted(self._ends, position, side="right"))
        begin = self._ends[epoch - 1] if epoch else 0
        return epoch, begin

    def sizes(self, epoch: int) -> Integers:
        """Count the samples of each shard in the epoch, with repetitions, (num_shards,)."""
        counts = self._of_epoch(epoch)
        return np.array([part.sum() for part in self._by_shard(counts)], dtype=np.int64)

    def samples(self, epoch: int, shard: int) -> Integers:
        """List the sample numbers of a shard, ascending, with repetitions."""
        start, size = int(self._starts[shard]), int(self.shard_sizes[shard])
        return np.repeat(np.arange(start, start + size), self._of_epoch(epoch)[start : start + size])

    def sample(self, epoch: int, number: int) -> int:
        """Map any number to a sample."""
        return number % len(self.factors)

    def _of_epoch(self, epoch: int) -> Integers:
        if self._counts is None or self._counts[0] != epoch:
            whole = np.floor(self.factors)
            # The last number separates this stream from others of the same seed and epoch.
            chance = np.random.default_rng((self.seed, epoch, 1)).random(len(self.factors))
            self._counts = epoch, (whole + (chance < self.factors - whole)).astype(np.int64)
        return self._counts[1]

    def _by_shard(self, counts: Integers) -> Iterable[Integers]:
        return np.split(counts, np.cumsum(self.shard_sizes)[:-1])
