"""Image features that one evaluation has made and the next reads: kept by model, in the data set's own folder.

    DATA/features/<key>.npz   numbers (N,) of the samples, ascending; their digests (N, 32); unit vectors (N, D)

The key holds the weights, the way with images, and sizes and times of the files where the pictures lie, since a data
set in the store holds their places alone: nothing there is ever out of date. Keeping is best effort: where nothing can
be written, features are made again.
"""

# N images, D width

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import Source

FOLDER = "features"
PUBLISHED = "manifest.json"  # what a data set in the store has; one that somebody is making may still change


def _none() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass
class KeptFeatures:
    """What is known of a data set's images by one model, and where it is kept; `file` None: nowhere."""

    file: Path | None = None
    numbers: NDArray[np.int64] = field(default_factory=_none)
    digests: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @classmethod
    def of(cls, source: Source, key: str) -> KeptFeatures:
        """What earlier evaluations kept of a data set in the store; `key` tells the model, empty: keep nothing."""
        folder = source.subset or source.directory
        if not key or not any((place / PUBLISHED).is_file() for place in (folder, folder.parent)):
            return cls()
        file = folder / FOLDER / f"{key}-{source.index.state()[:16]}.npz"
        # None there, or torn by a full disk: made again.
        with suppress(OSError, ValueError, KeyError, BadZipFile), file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            return cls(file, found["numbers"], found["digests"], found["vectors"])
        return cls(file)

    def update(self, numbers: Sequence[int], digests: Sequence[bytes], vectors: Tensor) -> None:
        """Takes samples in that were not known, and keeps all."""
        rows = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        everything = np.concatenate([self.numbers, np.array(numbers, np.int64)])
        order = np.argsort(everything)
        before = self.vectors.reshape(len(self.numbers), vectors.shape[1])  # a width of 0 where files hold the features
        self.vectors = np.concatenate([before, vectors.numpy()])[order]
        self.numbers, self.digests = everything[order], np.concatenate([self.digests, rows])[order]
        if self.file:
            with suppress(OSError):
                self._save(self.file)

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """The vectors of samples that are known, (N, D)."""
        return torch.from_numpy(self.vectors[np.searchsorted(self.numbers, numbers)])

    def digest(self, number: int) -> bytes:
        """What tells a known sample's picture and words from any others (`fingerprint.item_digest`)."""
        return bytes(self.digests[np.searchsorted(self.numbers, number)])

    def _save(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{file.stem}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                np.savez(stream, numbers=self.numbers, digests=self.digests, vectors=self.vectors)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
