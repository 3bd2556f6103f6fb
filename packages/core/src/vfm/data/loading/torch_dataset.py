"""Train on a user's torch Dataset, in vfm's sample order, with random draws that a resumed run repeats."""

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
from vfm.data.loading.loader import TrainingData, read_batches
from vfm.data.loading.plain_values import as_tensors, check_layout, layout_of
from vfm.data.loading.reader import MAX_TRIES, Reader
from vfm.data.samples.order import SameEpochs, SampleOrder
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (on the CPU) in the context, and restore them."""
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
    """The items of a Dataset by index, in the form that `TrainingData` expects. `ReadItem` reads them."""

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
        """Create a sample with the address of an item."""
        return self[index]

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """Create the endless stream of item numbers. Each epoch is shuffled as a whole."""
        return SampleOrder(SameEpochs([self.size]), seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to an item."""
        return number % self.size

    def where(self, index: int) -> str:
        """Format the address of an item for messages."""
        return f"{self.name}[{index}]"


@dataclass(frozen=True)
class ReadItem:
    """Reads an item with all global generators seeded by its draw, and checks that it is like the first item."""

    dataset: Any
    first: str
    layout: dict[str, str]

    def __call__(self, sample: Sample, draw: SampleDraw, /) -> Any:
        """Read an item as tensors.

        Raises:
            UserError: If the item contains something else, or its parts differ from the first item.
        """
        with seeded(draw.seed):
            item = as_tensors(self.dataset[draw.index], sample.key)
        check_layout(item, self.layout, sample.key, self.first)
        return item


class DatasetData(TrainingData[Any]):
    """Training steps from a Dataset.

    Items are read in this thread, because it seeds the generators of the whole process, or in workers. Workers are
    started with the default of the platform, so that a Dataset in a notebook need not be picklable.
    """

    def _read(self, reader: Reader[Any], plan: Iterable[Any]) -> Iterator[Batch[Any]]:
        return read_batches(reader, plan, self.workers, ahead=0, start=None)


def dataset_data(dataset: Any, config: Training) -> tuple[TrainingData[Any], dict[str, str]]:
    """Prepare a Dataset for training.

    Args:
        dataset: A map-style Dataset, or a list. An item is a dict, a tuple or a dataclass of tensors, arrays, numbers,
            PIL images and texts. Bad samples raise `vfm.data.BadSample`.
        config: Configuration of the training run.

    Returns:
        The data, and the layout of its samples.

    Raises:
        UserError: If the dataset is empty, or its first item contains something else.
    """
    name = type(dataset).__name__
    if not len(dataset):
        raise UserError(f"{name}: expected at least one sample, got an empty dataset")
    for index in range(min(len(dataset), MAX_TRIES)):  # find the first item that can be read
        try:
            with seeded(SampleDraw.of(config.seed, 0, index).seed):
                layout = layout_of(as_tensors(dataset[index], f"{name}[{index}]"))
        except BadSample as error:
            bad = error
            continue
        read = ReadItem(dataset, f"{name}[{index}]", layout)
        return DatasetData.of(config, DatasetSamples(name, len(dataset)), read), layout
    raise UserError(f"{name}: no sample can be read; the last is {bad}")
