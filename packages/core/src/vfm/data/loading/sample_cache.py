"""Store tensors by (sample, crop) with random access, so that an expensive model runs once for all epochs.

00000.npy       (rows, num_crops, *shape), a shard's samples in the dataset's order, memory-mapped when read. In int8,
                the last axis is four bytes longer: each vector is followed by its quantisation step in fp32
00000.bad.json  rows that are zero because the sample cannot be used: [row, reason, where]
"""

# R rows, C crops

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.reading.open_files import max_open_shards
from vfm.data.samples.sample import BadSample
from vfm.interfaces import SampleCache
from vfm.storage.publishing import publish_file
from vfm.storage.store_files import read_json, read_npy, reading

CACHE_FOLDER = "tensors"
SHARD_BYTES = 128 * 2**20
DTYPES = {"int8": np.int8, "fp16": np.float16, "fp32": np.float32}
SCALE_BYTES = 4  # the fp32 step after an int8 vector

Dtype = Literal["int8", "fp16", "fp32"]

Bad = tuple[int, str, str]
"""Row of a shard without tensors, the reason, and the sample's address."""


class CacheWriter:
    """Writes the shards of a cache one after another. A shard that exists is complete, and is kept.

    After a crash, writing resumes with the unfinished shard. Only one shard is in memory.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_samples: int,
        num_crops: int,
        shape: tuple[int, ...],
        dtype: Dtype,
        samples_per_shard: int | None = None,
    ) -> None:
        """Resume with the complete shards in `folder`.

        Args:
            folder: Folder of the shards. `publish` moves it.
            num_samples: Number of samples in the dataset.
            num_crops: Tensors per sample.
            shape: Shape of a tensor.
            dtype: Stored type. int8 rounds each vector to 255 steps, scaled by its largest absolute value.
            samples_per_shard: Samples in a shard. Default: as many as fit into about 128 MiB.
        """
        self.folder = folder
        self.num_samples = num_samples
        self.num_crops = num_crops
        self.shape = shape
        self.dtype: Dtype = dtype
        row_bytes = num_crops * math.prod(_stored(shape, dtype)) * np.dtype(DTYPES[dtype]).itemsize
        self.samples_per_shard = samples_per_shard or max(1, SHARD_BYTES // row_bytes)
        self.bad: list[tuple[str, str]] = []  # (reason, where) in the complete shards
        self.done = 0  # samples in the complete shards
        folder.mkdir(parents=True, exist_ok=True)
        while self.done < num_samples and _file(folder, self._shard).is_file():
            self._finish(_read_bad(folder, self._shard))
        self._begin()

    def plan(self, batch_size: int) -> list[range]:
        """Split the remaining samples into batches that do not cross the border of a shard."""
        borders = [*range(self.done, self.num_samples, self.samples_per_shard), self.num_samples]
        batches = []
        for begin, end in pairwise(borders):
            for start in range(begin, end, batch_size):
                batches.append(range(start, min(start + batch_size, end)))
        return batches

    def write(
        self, samples: range, tensors: Mapping[int, NDArray[np.floating[Any]]], bad: Iterable[tuple[str, str]]
    ) -> None:
        """Write the next of the planned batches.

        Args:
            samples: The planned batch.
            tensors: Tensor of each usable sample by its number, (C, *shape).
            bad: Reason and address of each other sample, in order.

        Raises:
            UserError: If a tensor is not finite, or exceeds the range of the dtype.
        """
        for index, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise UserError(f"sample {index}: the producer's tensor is not finite (NaN or infinity)")
            row = encode(tensor, self.dtype)
            if not np.isfinite(row).all():
                raise UserError(f"sample {index}: values up to {np.abs(tensor).max():.3g} exceed {self.dtype}")
            self._rows[index - self.done] = row
        missing = sorted(set(samples) - set(tensors))
        for index, (reason, where) in zip(missing, bad, strict=True):
            self._bad.append((index - self.done, reason, where))
        if samples.stop == self.done + self._num_rows:
            self._save()

    @property
    def _shard(self) -> int:
        return self.done // self.samples_per_shard

    @property
    def _num_rows(self) -> int:
        return min(self.samples_per_shard, self.num_samples - self.done)

    def _begin(self) -> None:
        self._rows: NDArray[Any] = np.zeros(
            (self._num_rows, self.num_crops, *_stored(self.shape, self.dtype)), DTYPES[self.dtype]
        )
        self._bad: list[Bad] = []

    def _save(self) -> None:
        file = _file(self.folder, self._shard)
        _bad_file(self.folder, self._shard).write_text(json.dumps(self._bad) + "\n", encoding="utf-8")
        part = file.with_suffix(".part")
        with part.open("wb") as opened:
            np.save(opened, self._rows, allow_pickle=False)
        publish_file(part, file)  # last, because its existence marks the shard as complete
        self._finish(self._bad)
        self._begin()

    def _finish(self, bad: Iterable[Bad]) -> None:
        for _, reason, where in bad:
            self.bad.append((reason, where))
        self.done += self._num_rows

    def publish(self, directory: Path, **facts: Any) -> SampleCache:
        """Write the facts, with the caller's facts about producer and crops, and move the shards to the artifact."""
        bad_samples = Counter(reason for reason, _ in self.bad)
        cache = SampleCache.create(
            directory,
            num_samples=self.num_samples,
            num_crops=self.num_crops,
            shape=self.shape,
            dtype=self.dtype,
            samples_per_shard=self.samples_per_shard,
            bad_samples=dict(sorted(bad_samples.items())),
            **facts,
        )
        self.folder.rename(directory / CACHE_FOLDER)  # last, so that a crash before it loses no shard from `ctx.work`
        return cache


class CachedTensors:
    """The tensors of a cache, by (sample, crop). Shards are opened on first use, and again in worker processes."""

    def __init__(self, cache: SampleCache) -> None:
        self.cache = cache
        self.folder = cache.path.resolve() / CACHE_FOLDER
        self._open = lru_cache(max_open_shards())(self._open_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.cache.path.resolve(),)

    def __len__(self) -> int:
        return self.cache.num_samples

    def crop_in(self, step: int, global_batch_size: int) -> int:
        """Choose the crop for the epoch in which a training step begins. Epochs cycle through the crops."""
        return step * global_batch_size // len(self) % self.cache.num_crops

    def __getitem__(self, sample_and_crop: tuple[int, int]) -> NDArray[Any]:
        """Read a copy of the tensor of (sample, crop). int8 is decoded to fp32.

        Raises:
            BadSample: If the sample could not be used when the cache was made.
            IndexError: If sample or crop is out of range.
            UserError: If a shard is missing or damaged.
        """
        index, crop = sample_and_crop
        if not (0 <= index < len(self) and 0 <= crop < self.cache.num_crops):
            raise IndexError(f"sample {index} of {len(self)}, crop {crop} of {self.cache.num_crops}")
        shard, row = divmod(index, self.cache.samples_per_shard)
        rows, bad = self._open(shard)
        if row in bad:
            raise BadSample(*bad[row])
        return decode(np.array(rows[row, crop]))

    def _open_shard(self, shard: int) -> tuple[NDArray[Any], dict[int, tuple[Any, str]]]:
        cache = self.cache
        file = _file(self.folder, shard)
        num_rows = min(cache.samples_per_shard, cache.num_samples - shard * cache.samples_per_shard)
        try:
            rows = read_npy(file, mapped=True)
            bad = {row: (reason, where) for row, reason, where in _read_bad(self.folder, shard)}
        except UserError as error:
            raise UserError(f"{error}; delete the cache and run its stage again") from None
        shape = (num_rows, cache.num_crops, *_stored(cache.shape, cache.dtype))
        if (rows.shape, rows.dtype) != (shape, DTYPES[cache.dtype]):
            raise UserError(f"{file}: expected {cache.dtype} {shape}, got {rows.dtype} {rows.shape}")
        return rows, bad


def encode(tensor: NDArray[np.floating[Any]], dtype: Dtype) -> NDArray[Any]:
    """Encode a tensor for storage. Rounding to int8 changes each value by at most half a step."""
    with np.errstate(over="ignore"):  # too large values become infinite, which `CacheWriter.write` reports
        if dtype != "int8":
            return tensor.astype(DTYPES[dtype])
    # One step per vector. Its bytes in fp32 follow the vector in the same array, so that a single read gets both.
    step = np.abs(tensor).max(axis=-1, keepdims=True).astype(np.float32) / 127
    steps = np.rint(tensor / np.where(step > 0, step, 1)).clip(-127, 127).astype(np.int8)
    return np.concatenate([steps, step.view(np.int8)], axis=-1)


def decode(stored: NDArray[Any]) -> NDArray[Any]:
    """Decode a tensor that `encode` stored."""
    if stored.dtype != np.int8:
        return stored
    step = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view(np.float32)
    return stored[..., :-SCALE_BYTES].astype(np.float32) * step


def _stored(shape: tuple[int, ...], dtype: Dtype) -> tuple[int, ...]:
    if dtype != "int8":
        return shape
    return (*shape[:-1], shape[-1] + SCALE_BYTES)


def _reopen(directory: Path) -> CachedTensors:
    return CachedTensors(SampleCache.load(directory))


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.npy"


def _bad_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.bad.json"


def _read_bad(folder: Path, shard: int) -> list[Bad]:
    file = _bad_file(folder, shard)
    with reading(file, "a list of bad samples"):
        return [(int(row), str(reason), str(where)) for row, reason, where in read_json(file)]
