"""A cache of image features in the dataset's own folder: one evaluation writes it, the next reads it.

    DATA/features/<key>.npz   numbers (N,) of the samples, ascending; their digests (N, 32); unit vectors (N, D)

The key covers the weights, the preprocessing, and sizes and times of the image files (a dataset in the store holds
only their addresses), so an entry is never out of date. Writing is best effort: where it fails, features are computed
again.
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
from vfm.storage.publishing import new_file
from vfm.train.parallel.sharing import without_values

FOLDER = "features"
PUBLISHED = "manifest.json"  # every dataset in the store has one; a dataset without it may still change


def _no_numbers() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass
class FeatureCache:
    """Cached features of a dataset by one model, and their file; without a file nothing is stored."""

    file: Path | None = None
    numbers: NDArray[np.int64] = field(default_factory=_no_numbers)
    digests: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @classmethod
    def of(cls, source: Source, key: str) -> FeatureCache:
        """Read the cache of a dataset in the store; `key` identifies the model, empty: cache nothing."""
        folder = source.subset or source.directory
        if not key or not any((place / PUBLISHED).is_file() for place in (folder, folder.parent)):
            return cls()
        file = folder / FOLDER / f"{key}-{source.index.state()[:16]}.npz"
        # A missing file, or one torn by a full disk, is an empty cache; zip and numpy raise errors of many types on it.
        with suppress(Exception), file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            return cls(file, found["numbers"], found["digests"], torch.from_numpy(found["vectors"]))
        return cls(file)

    def without_values(self) -> FeatureCache:
        """Return the same cache for a process that only has to know what is cached."""
        return FeatureCache(None, self.numbers, self.digests, without_values(self.vectors))

    def update(self, numbers: Sequence[int], digests: Sequence[bytes], vectors: Tensor) -> None:
        """Add samples that are not cached yet, and write the file."""
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
        """Return the vectors of cached samples, (N, D)."""
        return self.vectors[torch.from_numpy(np.searchsorted(self.numbers, numbers))]

    def digest(self, number: int) -> bytes:
        """Return the hash of a cached sample's image and texts (`item_digest`)."""
        return bytes(self.digests[np.searchsorted(self.numbers, number)])

    def _save(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        with new_file(file, durable=False) as stream:
            np.savez(stream, numbers=self.numbers, digests=self.digests, vectors=self.vectors.numpy())
