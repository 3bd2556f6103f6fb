"""A user's torch Dataset as the data of a training: samples in our order, and random draws that a resume repeats."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vfm.base import UserError
from vfm.data.loading.batch import Batch, SampleDraw
from vfm.data.loading.loader import MAX_TRIES, Reader, TrainingData, read_batches
from vfm.data.loading.plain_values import as_tensors, check_layout, layout_of
from vfm.data.samples.order import SameEpochs, SampleOrder
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (on the CPU) within the context, and restore them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class DatasetSamples:
    """The items of a Dataset by number, as `TrainingData` takes them; they are read by `ReadItem`."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    @property
    def directory(self) -> Path:
        """The Dataset's name, for messages."""
        return Path(self.name)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.where(index), str(index), b"")

    def sample(self, index: int, epoch: int) -> Sample:
        """Return the address of an item."""
        return self[index]

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """Return the endless stream of item numbers; each epoch is shuffled as a whole."""
        return SampleOrder(SameEpochs([self.size]), seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to an item."""
        return number % self.size

    def where(self, index: int) -> str:
        """Return the address of an item for messages."""
        return f"{self.name}[{index}]"


@dataclass(frozen=True)
class ReadItem:
    """Reads an item with all global generators seeded by its draw, and checks that it is like the first one."""

    dataset: Any
    first: str
    layout: dict[str, str]

    def __call__(self, sample: Sample, draw: SampleDraw, /) -> Any:
        """Return an item as tensors.

        Raises:
            UserError: it holds something else, or its parts are not those of the first item.
        """
        with seeded(draw.seed):
            made = as_tensors(self.dataset[draw.index], sample.key)
        check_layout(made, self.layout, sample.key, self.first)
        return made


class DatasetData(TrainingData[Any]):
    """Steps of a Dataset.

    This thread reads, since the generators that it seeds are those of the whole process; or workers do, started as the
    platform does, so that a Dataset of a notebook need not be pickled.
    """

    def _read(self, reader: Reader[Any], plan: Iterable[Any]) -> Iterator[Batch[Any]]:
        return read_batches(reader, plan, self.workers, ahead=0, start=None)


def dataset_data(dataset: Any, config: Training) -> tuple[TrainingData[Any], dict[str, str]]:
    """Return the data of a training, and the layout of its samples.

    Args:
        dataset: a map-style Dataset, or a list; an item is a dict, a tuple or a dataclass of tensors, arrays, numbers,
            PIL images and texts. Bad samples raise `vfm.data.BadSample`.
        config: the training.

    Raises:
        UserError: it is empty, or its first item holds something else.
    """
    name = type(dataset).__name__
    if not len(dataset):
        raise UserError(f"{name}: expected at least one sample, got an empty dataset")
    for index in range(min(len(dataset), MAX_TRIES)):  # the first that can be read
        try:
            with seeded(SampleDraw.of(config.seed, 0, index).seed):
                layout = layout_of(as_tensors(dataset[index], f"{name}[{index}]"))
        except BadSample as error:
            bad = error
            continue
        read = ReadItem(dataset, f"{name}[{index}]", layout)
        return DatasetData.of(config, DatasetSamples(name, len(dataset)), read), layout
    raise UserError(f"{name}: no sample can be read; the last is {bad}")
