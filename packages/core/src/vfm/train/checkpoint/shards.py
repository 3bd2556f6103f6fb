"""Tensors of a checkpoint in the sharded form: each process writes what it stores, any number of processes read it.

Keys are `part/name`, such as `model/net.0.weight`. The files are safetensors, whose headers say which rows of which
tensor they have (`torch.distributed.checkpoint`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

Parts = dict[str, dict[str, Tensor]]


def write_shards(parts: Mapping[str, Mapping[str, Tensor]], folder: Path, group: ProcessGroup) -> None:
    """Write this process' part of the tensors into a new folder; a collective of the group.

    Raises:
        OSError: a process cannot write, e.g. its disk is full; it names the folder.
    """
    tensors: dict[str, Any] = {
        f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()
    }
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(folder)) from None
        raise causes[0] from None


def read_shards(folder: Path, sharded: Mapping[str, DTensor]) -> Parts:
    """Return the tensors of a folder: this process' part of those that it shards, the others whole.

    Args:
        folder: as `write_shards` made it, by any number of processes.
        sharded: parameters by name, which their averages and optimizer state follow.
    """
    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Any] = {}
    for key, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        part, _, name = key.partition("/")
        like = owner(part, name, entry.size, sharded)
        dtype = entry.properties.dtype
        found[key] = torch.empty(entry.size, dtype=dtype) if like is None else torch.empty_like(like, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is intended: each reads alone
        load(found, storage_reader=reader, no_dist=True)
    parts: Parts = {}
    for key, value in found.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts


def cut(part: str, values: Mapping[str, Tensor], sharded: Mapping[str, DTensor]) -> dict[str, Tensor]:
    """Return whole tensors as this process stores them; arguments as in `read_shards`."""
    placed = dict(values)
    for name, value in values.items():
        like = owner(part, name, value.shape, sharded)
        if like is not None:
            placed[name] = distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
    return placed


def owner(part: str, name: str, shape: torch.Size, sharded: Mapping[str, DTensor]) -> DTensor | None:
    """Return the sharded parameter that a tensor of a checkpoint belongs to, if it has its shape."""
    like = sharded.get(name.rpartition("/")[0] if part == "optimizer" else name)
    return like if like is not None and like.shape == shape else None
