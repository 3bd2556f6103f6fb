"""Keep image features in the folder of the dataset. One evaluation writes them, and the next one reads them.

    DATA/features/<key>.npz   numbers of the samples (N,), ascending, their digests (N, 64), unit vectors (N, D)

The key covers the weights, the preprocessing, and the sizes and times of the image files (a dataset in the store has
only their addresses), so an entry is never out of date. If writing fails, features are computed again.
"""

# N images, D width

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import Source
from vfm.eval.encode.hashes import ITEM_BYTES
from vfm.storage.publishing import new_file
from vfm.train.parallel.sharing import without_values

FOLDER = "features"
PUBLISHED = "manifest.json"  # every dataset in the store has one, and a dataset without it may still change


def _no_numbers() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass
class FeatureCache:
    """Cached features of a dataset by one model, and their file. Without a file nothing is stored."""

    file: Path | None = None
    numbers: NDArray[np.int64] = field(default_factory=_no_numbers)
    digests: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 2 * ITEM_BYTES), np.uint8))
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @classmethod
    def of(cls, source: Source, key: str) -> FeatureCache:
        """Read the cache of a dataset in the store. `key` identifies the model. With an empty key, cache nothing."""
        folder = source.subset or source.directory
        is_published = any((parent / PUBLISHED).is_file() for parent in (folder, folder.parent))
        if not key or not is_published:
            return cls()
        file = folder / FOLDER / f"{key}-{source.index.state()[:16]}.npz"
        # A missing file, or one torn by a full disk, is an empty cache; zip and numpy raise errors of many types on it.
        with suppress(Exception), file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            digests = arrays["digests"]
            if digests.shape[1] == 2 * ITEM_BYTES:  # earlier versions stored no hash of the image alone
                return cls(file, arrays["numbers"], digests, torch.from_numpy(arrays["vectors"]))
        return cls(file)

    def without_values(self) -> FeatureCache:
        """Copy the cache for a process that only needs to know which samples are cached."""
        return FeatureCache(None, self.numbers, self.digests, without_values(self.vectors))

    def update(self, numbers: Sequence[int], digests: Sequence[bytes], vectors: Tensor) -> None:
        """Add samples that are not cached yet, and write the file.

        Args:
            numbers: Numbers of the samples.
            digests: Hash of each sample.
            vectors: Features, (N, D).
        """
        rows = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        everything = np.concatenate([self.numbers, np.array(numbers, np.int64)])
        order = np.argsort(everything)
        both = torch.cat([self.vectors, vectors]) if len(self.numbers) else vectors
        self.vectors = both[torch.from_numpy(order)]
        self.numbers, self.digests = everything[order], np.concatenate([self.digests, rows])[order]
        if self.file:
            with suppress(OSError):
                self._save(self.file)

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Look up the vectors of cached samples, (N, D)."""
        return self.vectors[torch.from_numpy(np.searchsorted(self.numbers, numbers))]

    def digest(self, number: int) -> bytes:
        """Look up the hashes of a cached sample (`sample_digest`)."""
        return bytes(self.digests[np.searchsorted(self.numbers, number)])

    def _save(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        with new_file(file, durable=False) as stream:
            np.savez(stream, numbers=self.numbers, digests=self.digests, vectors=self.vectors.numpy())
