"""Tensors of a checkpoint in sharded form. Each process writes its part, and any number of processes can read it.

Keys are `part/name`, such as `model/net.0.weight`. The files are safetensors, whose headers list the rows of the
tensors that they contain (`torch.distributed.checkpoint`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future

from vfm.models import save_state_dict
from vfm.storage.publishing import sync

Parts = dict[str, dict[str, Tensor]]


def write_shards(parts: Mapping[str, Mapping[str, Tensor]], folder: Path, group: ProcessGroup) -> None:
    """Write this process' part of the tensors into a new folder. All processes of the group must call it.

    Args:
        parts: Tensors by the name of the part.
        folder: New folder.
        group: Processes that write.

    Raises:
        OSError: If a process cannot write, for example because its disk is full. The error names the folder.
    """
    tensors: dict[str, Any] = {}
    for part, values in parts.items():
        for name, value in values.items():
            tensors[f"{part}/{name}"] = value
    writer = _Writer(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            # torch wraps the causes in an exception of its own, which hides that the disk is full.
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(folder)) from None
        raise causes[0] from None


class _Writer(HuggingFaceStorageWriter):
    """Writes tensors directly. torch's writer first copies all of them into a byte string."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors that the plan gives to this process into a file."""
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, Any] = {}
        for item in plan.items:
            assert item.tensor_data
            tensors[item.index.fqn] = planner.resolve_data(item)  # type: ignore[assignment]
            offsets[item.index.fqn] = {SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets}
        if tensors:
            name = _gen_file_name(1, 1, plan.storage_data["shard_index"])
            metadata = {"format": "pt", DCP_VERSION_KEY: str(HF_DCP_VERSION), CUSTOM_METADATA_KEY: json.dumps(offsets)}
            file = Path(self.path) / name
            save_state_dict(tensors, file, metadata)
            sync(file)
        results: Future[list[WriteResult]] = Future()
        results.set_result([])  # sharded files need no list of all files
        return results


def read_shards(folder: Path, sharded: Mapping[str, DTensor]) -> Parts:
    """Read the tensors in a folder. Of sharded tensors, only this process' part is read.

    Args:
        folder: Folder written by `write_shards`, with any number of processes.
        sharded: Sharded parameters by name. Their averages and optimizer state are sharded in the same way.
    """
    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Any] = {}
    for key, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        part, _, name = key.partition("/")
        like = owner(part, name, entry.size, sharded)
        dtype = entry.properties.dtype
        # Whole tensors are read by all, sharded ones only in the rows of this process, which `load` takes from the
        # shape and placement given here.
        tensors[key] = torch.empty(entry.size, dtype=dtype) if like is None else torch.empty_like(like, dtype=dtype)
    with warnings.catch_warnings():
        # Each process reads alone, so this is intended.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    parts: Parts = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts


def cut(part: str, values: Mapping[str, Tensor], sharded: Mapping[str, DTensor]) -> dict[str, Tensor]:
    """Shard whole tensors, and return the parts that this process stores.

    Args:
        part: As in `read_shards`.
        values: Whole tensors by name.
        sharded: As in `read_shards`.
    """
    placed = dict(values)
    for name, value in values.items():
        like = owner(part, name, value.shape, sharded)
        if like is not None:
            placed[name] = distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
    return placed


def owner(part: str, name: str, shape: torch.Size, sharded: Mapping[str, DTensor]) -> DTensor | None:
    """Find the sharded parameter that a tensor of a checkpoint belongs to.

    Args:
        part: Part of the checkpoint.
        name: Name of the tensor.
        shape: Shape of the whole tensor.
        sharded: Sharded parameters by name.

    Returns:
        The parameter, or None if the shapes differ.
    """
    like = sharded.get(name.rpartition("/")[0] if part == "optimizer" else name)
    if like is not None and like.shape == shape:
        return like
    return None
