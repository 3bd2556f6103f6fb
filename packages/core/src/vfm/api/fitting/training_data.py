"""Open the Dataset or DataLoader of `fit`. Imports torch."""

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
    """Check whether data are a DataLoader or another iterable of batches, and not a Dataset.

    Raises:
        UserError: If they are neither.
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


def batch_size(data: Any, requested: int | None, micro_batch_size: int | None) -> int | None:
    """Determine the samples per step.

    Args:
        data: The data. The batches of a DataLoader have a size.
        requested: Number of samples for other data.
        micro_batch_size: Samples of a micro-batch.

    Returns:
        Number of samples, or None for the default.

    Raises:
        UserError: If the batches of the DataLoader have another size, or would have to be split.
    """
    loader_size = _own_size(data) if is_loader(data) else None
    if loader_size and requested not in (None, loader_size):
        raise UserError(f"fit: global_batch_size: the DataLoader's batches have {loader_size} samples, got {requested}")
    if is_loader(data) and micro_batch_size:
        raise UserError("fit: micro_batch_size: a DataLoader's batches are taken whole; give its Dataset instead")
    return loader_size or requested


def training_data(data: Any, config: Training, log: Callable[[str], None]) -> tuple[Data[Any], dict[str, Any]]:
    """Open the data of a training run, and collect the facts that identify them in its record.

    Args:
        data: A Dataset or a DataLoader.
        config: Configuration of the run.
        log: Called with a line if resuming skips batches.

    Raises:
        UserError: If a Dataset is empty, its first sample holds a value that is not a tensor, or workers are set
            together with a DataLoader.
    """
    facts: dict[str, Any] = {"type": type(data).__name__, "length": _length(data)}
    if is_loader(data):
        workers = config.runtime.workers
        if workers:
            raise UserError(f"fit: workers: a DataLoader reads by its own num_workers: expected 0, got {workers}")
        if "global_batch_size" in config.model_fields_set:
            expected = config.global_batch_size
        else:
            expected = None
        if _own_size(data):
            expected = None  # `batch_size` has compared it, and the first batch may be smaller
        return LoaderData(data, config.seed, log, expected), facts
    opened, layout = dataset_data(data, config)
    return opened, {**facts, "sample": layout}


def _own_size(loader: Any) -> int | None:
    """Look up the batch size of a DataLoader. A loader with a `batch_sampler` has none."""
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else None


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a DataLoader over an IterableDataset
        return None
