"""Make the inputs of a whole batch at once, and keep the contents of small datasets in memory."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from vfm.data.loading.batch import Inputs, SampleDraw, map_tensors, stacked
from vfm.data.samples.sample import Sample

Content = TypeVar("Content")
MEMORY_BYTES = 256 * 2**20  # of all workers of a process together


class BatchMake(ABC, Generic[Content, Inputs]):
    """A `Make` in three steps.

    `read` decodes a sample, `use` applies the draws of a training step to its content, and `join` stacks a batch.
    `read` draws no random numbers, so a small dataset is read only once. The inputs of a sample depend on its content
    and its draw, never on other samples of the batch.
    """

    @abstractmethod
    def read(self, sample: Sample, /) -> Content:
        """Read the content of a sample before any random draw, such as its decoded image and its captions.

        Raises:
            BadSample: If the sample cannot be used.
        """

    def use(self, content: Content, draw: SampleDraw, /) -> Any:
        """Make the part of a sample that `join` needs, such as a random crop. The content must not be changed.

        Raises:
            BadSample: If the sample cannot be used.
        """
        return content

    def join(self, uses: Sequence[Any], draws: Sequence[SampleDraw], /) -> Inputs:
        """Make the inputs of a batch from the results of `use` and the draws. Default: stack the results."""
        inputs: Inputs = stacked(uses)
        return inputs

    def __call__(self, sample: Sample, draw: SampleDraw, /) -> Inputs:
        """Make the inputs of a single sample.

        Raises:
            BadSample: If the sample cannot be used.
        """
        return map_tensors(self.join([self.use(self.read(sample), draw)], [draw]), lambda tensor: tensor[0])


class ContentMemory:
    """Keys and contents of samples, kept if those of the whole dataset fit into `limit` bytes, else none."""

    def __init__(self, num_samples: int, limit: int = MEMORY_BYTES) -> None:
        self.num_samples, self.limit = num_samples, limit
        self._kept: dict[int, tuple[str, Any]] = {}
        self._bytes, self._fits = 0, True

    def __reduce__(self) -> tuple[Any, ...]:  # a worker reads its samples itself
        return ContentMemory, (self.num_samples, self.limit)

    def get(self, index: int) -> tuple[str, Any] | None:
        """Look up key and content of a sample, if they are in memory."""
        return self._kept.get(index)

    def keep(self, index: int, key: str, content: Any) -> None:
        """Keep a content, unless the mean size of the contents says that the dataset does not fit.

        Args:
            index: Number of the sample.
            key: Its key.
            content: Its decoded content.
        """
        if not self._fits or index in self._kept:
            return
        self._kept[index] = key, content
        self._bytes += bytes_of(key) + bytes_of(content)
        if self._bytes * self.num_samples > self.limit * len(self._kept):
            self._fits = False
            self._kept.clear()


def bytes_of(content: Any) -> int:
    """Estimate the bytes of tensors, images and texts in sequences, mappings and dataclasses."""
    if isinstance(content, Tensor | np.ndarray):
        return int(content.nbytes)
    if isinstance(content, Image.Image):
        return content.width * content.height * len(content.getbands())
    if isinstance(content, str | bytes):
        return len(content)
    if isinstance(content, Mapping):
        return sum(map(bytes_of, content.values()))
    if isinstance(content, Sequence):
        return sum(map(bytes_of, content))
    return sum(map(bytes_of, vars(content).values())) if dataclasses.is_dataclass(content) else 8
