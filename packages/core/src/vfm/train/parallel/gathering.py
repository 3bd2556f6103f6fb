"""Gathers sharded tensors from all processes, several in a single collective operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

BUCKET_BYTES = 64 * 2**20  # of the whole tensors that are gathered together


def gathered(tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
    """Yield whole tensors by name, in the given order. All processes must call it with the same names.

    Sharded tensors are gathered when they are needed, one bucket at a time, so only the tensors of a bucket are in
    memory, in addition to the ones that the caller keeps. Tensors that are not sharded are copied.

    Args:
        tensors: Pairs of a name and a tensor. Sharded ones are split by rows, as in FSDP.
        bucket_bytes: Bytes of the whole tensors that are gathered together. A larger tensor is gathered alone.
    """
    bucket: list[tuple[str, DTensor]] = []
    for name, value in tensors:
        if bucket and not (isinstance(value, DTensor) and _fits(bucket, value, bucket_bytes)):
            yield from _gather(bucket)
            bucket = []
        if isinstance(value, DTensor):
            bucket.append((name, value))
        else:
            yield name, value.clone()
    if bucket:
        yield from _gather(bucket)


def _fits(bucket: list[tuple[str, DTensor]], value: DTensor, limit: int) -> bool:
    _, first = bucket[0]
    same = (first.dtype, first.device_mesh, first.placements) == (value.dtype, value.device_mesh, value.placements)
    return same and value.nbytes + sum(tensor.nbytes for _, tensor in bucket) <= limit


def _gather(bucket: list[tuple[str, DTensor]]) -> Iterator[tuple[str, Tensor]]:
    _, first = bucket[0]
    cut = [isinstance(placement, Shard) for placement in first.placements].index(True)
    group = first.device_mesh.get_group(cut)
    size = first.device_mesh.size(cut)
    parts = [_padded(value, size) for _, value in bucket]
    local = torch.cat(parts)
    whole = local.new_empty(size * len(local))
    dist.all_gather_into_tensor(whole, local, group=group)
    columns = torch.split(whole.view(size, -1), list(map(len, parts)), dim=1)
    for (name, value), column in zip(bucket, columns, strict=True):
        # A copy, as a view of a single number per process would not be contiguous, and would keep the bucket alive.
        rows = column.clone(memory_format=torch.contiguous_format).view(-1, *value.shape[1:])
        yield name, rows[: len(value)]


def _padded(value: DTensor, size: int) -> Tensor:
    """Flatten this process' rows, and pad them with zeros to the number of rows of the first process."""
    local = value.to_local()
    padded = local.new_zeros(-(-len(value) // size), *value.shape[1:])
    padded[: len(local)] = local
    return padded.flatten()
