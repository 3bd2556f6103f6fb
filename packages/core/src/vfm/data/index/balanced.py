"""Redraw the texts of a curated subset in each epoch, by their stored probabilities.

Images without a drawn text are not used in the epoch. The draw depends only on the text, the seed and the epoch. The
length of an epoch is known after one streaming pass over the subset. Only the counts per shard stay in memory.

Source: online curation, Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062), with a hash instead of a generator.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.index.subset import SubsetView
from vfm.data.samples.draws import splitmix64

EPOCHS_PER_PASS = 16  # epochs drawn in one pass over the subset when a training run resumes late in the stream
EPOCHS_IN_MEMORY = 2 * EPOCHS_PER_PASS


class BalancedEpochs:
    """`Epochs` of a subset whose texts are redrawn. Numbers count all samples that may be drawn, shard by shard."""

    def __init__(self, view: SubsetView) -> None:
        assert view.draw
        self.view = view
        self.draw = view.draw
        self._stops = np.cumsum(view.shard_sizes)
        self._ends: list[int] = []  # end of each epoch in the stream
        self._sizes: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def at(self, position: int) -> tuple[int, int]:
        """Find the epoch at a position of the stream, and the position where the epoch begins.

        Raises:
            UserError: If the probabilities are so small that epochs have no samples.
        """
        while not self._ends or self._ends[-1] <= position:
            self._lengthen(position)
        epoch = bisect_right(self._ends, position)
        return epoch, self._ends[epoch - 1] if epoch else 0

    def sizes(self, epoch: int) -> NDArray[np.int64]:
        """Count the samples with a drawn text in each shard, (num_shards,)."""
        if epoch not in self._sizes:
            self._count(range(epoch, epoch + 1))
        return self._sizes[epoch]

    def samples(self, epoch: int, shard: int) -> NDArray[np.int64]:
        """List the numbers of a shard's samples in the epoch, ascending."""
        texts = self.view.read(shard)
        used = np.unique(texts.rows[texts.drawn(self.draw, epoch)])
        samples: NDArray[np.int64] = np.searchsorted(texts.samples, used)
        samples += self._stops[shard] - self.view.shard_sizes[shard]
        return samples

    def sample(self, epoch: int, number: int) -> int:
        """Map any number to a sample of the epoch, in the shard that it falls into or the next shard with a sample."""
        shard = int(np.searchsorted(self._stops, number % int(self._stops[-1]), side="right"))
        # Not uniform over samples, but cheap: only one shard's texts are drawn, and only bad samples are replaced.
        samples = self.samples(epoch, shard)
        while not len(samples):
            shard = (shard + 1) % len(self._stops)
            samples = self.samples(epoch, shard)
        drawn = splitmix64(np.array([number], dtype=np.uint64))[0]
        return int(samples[int(drawn) % len(samples)])

    def _lengthen(self, position: int) -> None:
        """Find the ends of further epochs, several at once if the position is far ahead."""
        end = self._ends[-1] if self._ends else 0
        # Epochs have about equal lengths, so the mean length gives how many more are needed to reach the position.
        mean = end / max(1, len(self._ends))
        number = min(EPOCHS_PER_PASS, 1 + int((position - end) / mean)) if mean else 1
        epochs = range(len(self._ends), len(self._ends) + number)
        self._count(epochs)
        for epoch in epochs:
            end += int(self._sizes[epoch].sum())
            self._ends.append(end)
        if len(self._ends) > EPOCHS_PER_PASS and self._ends[-1 - EPOCHS_PER_PASS] == end:
            raise UserError(
                f"{self.view.path}: no text was drawn in {EPOCHS_PER_PASS} epochs in a row; curate with a larger t"
            )

    def _count(self, epochs: range) -> None:
        """Draw epochs in one pass over the subset, and count their samples."""
        sizes = np.zeros((len(epochs), len(self._stops)), dtype=np.int64)
        for shard in np.flatnonzero(self.view.shard_sizes).tolist():
            texts = self.view.read(shard)
            for i, epoch in enumerate(epochs):
                used = texts.rows[texts.drawn(self.draw, epoch)]
                sizes[i, shard] = np.count_nonzero(np.diff(used, prepend=-1))
        for epoch, size in zip(epochs, sizes, strict=True):
            self._sizes[epoch] = size
        while len(self._sizes) > EPOCHS_IN_MEMORY:
            self._sizes.popitem(last=False)
