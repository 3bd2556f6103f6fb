"""What a user gives to `fit` as data: a Dataset, or a DataLoader. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from vfm.base import UserError
from vfm.data.loading.torch_dataset import dataset_data
from vfm.data.loading.torch_loader import LoaderData
from vfm.interfaces import Training
from vfm.train import Data


def is_loader(data: Any) -> bool:
    """Return whether data are a DataLoader or like one: batches that can be iterated again. Otherwise it is a Dataset.

    Raises:
        UserError: they are neither.
    """
    if isinstance(data, DataLoader):
        return True
    if isinstance(data, IterableDataset):
        raise UserError(f"fit: {type(data).__name__} is an IterableDataset: give a DataLoader over it")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | Mapping):
        return False
    if isinstance(data, Iterable) and not isinstance(data, Iterator | str | Mapping):
        return True
    raise UserError(f"fit: expected a Dataset, a list or a DataLoader, got a {type(data).__name__}")


def batch_size(data: Any, given: int | None, micro_batch_size: int | None) -> int | None:
    """Return the samples per step: those of a DataLoader's batches, else the given number; None: the default.

    Raises:
        UserError: the DataLoader has batches of another size, or should be split.
    """
    own = _own_size(data) if is_loader(data) else None
    if own and given not in (None, own):
        raise UserError(f"fit: global_batch_size: the DataLoader's batches have {own} samples, got {given}")
    if is_loader(data) and micro_batch_size:
        raise UserError("fit: micro_batch_size: a DataLoader's batches are taken whole; give its Dataset instead")
    return own or given


def training_data(data: Any, config: Training, log: Callable[[str], None]) -> tuple[Data[Any], dict[str, Any]]:
    """Return the data of a training, and what identifies them in its record.

    Args:
        data: a Dataset or a DataLoader.
        config: the training.
        log: called with a line where a resume skips batches.

    Raises:
        UserError: a Dataset is empty, its first sample holds something that is no tensor, or workers are set beside a
            DataLoader.
    """
    facts: dict[str, Any] = {"type": type(data).__name__, "length": _length(data)}
    if is_loader(data):
        if workers := config.runtime.workers:
            raise UserError(f"fit: workers: a DataLoader reads by its own num_workers: expected 0, got {workers}")
        given = config.global_batch_size if "global_batch_size" in config.model_fields_set else None
        # A loader's own number, which `batch_size` has compared, is not that of a small first batch.
        return LoaderData(data, config.seed, log, None if _own_size(data) else given), facts
    found, layout = dataset_data(data, config)
    return found, {**facts, "sample": layout}


def _own_size(loader: Any) -> int | None:
    """Return the batch size of a DataLoader; None: it has none, as with a `batch_sampler`."""
    own = getattr(loader, "batch_size", None)
    return own if isinstance(own, int) else None


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a DataLoader over an IterableDataset
        return None
