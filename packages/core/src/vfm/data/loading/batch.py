"""Batches have the stacked inputs of several samples, their keys and the skipped samples."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from vfm.data.samples.sample import Sample

Inputs = TypeVar("Inputs")
"""The tensors of a sample or a batch: a tensor, None, texts, or a frozen dataclass, tuple or mapping of these."""
MadeInputs = TypeVar("MadeInputs", covariant=True)


@dataclass(frozen=True)
class SampleDraw:
    """One use of a sample in training. All its random numbers are drawn from `seed`."""

    seed: int  # 63 bits, the same in every process
    step: int
    index: int  # index of the sample in its source

    @classmethod
    def of(cls, seed: int, step: int, index: int, repeat: int = 0) -> SampleDraw:
        """Derive the draw of a sample.

        Args:
            seed: Seed of the training run.
            step: Number of the step.
            index: Number of the sample.
            repeat: Number of its earlier uses in the step.
        """
        identity = (seed, step, index, repeat) if repeat else (seed, step, index)
        digest = hashlib.blake2b(struct.pack(f"<{len(identity)}q", *identity), digest_size=8).digest()
        return cls(int.from_bytes(digest, "little") >> 1, step, index)  # 63 bits fit into a signed integer


@dataclass(frozen=True)
class Ragged:
    """Tensors whose sizes differ between samples, such as the boxes of each image.

    `parts` has one tensor in a sample, and a tensor for each sample in a batch.
    """

    parts: tuple[Tensor, ...]


class Make(Protocol[MadeInputs]):
    """Makes a task's inputs from a sample. It must be picklable, because workers call it."""

    def __call__(self, sample: Sample, draw: SampleDraw, /) -> MadeInputs:
        """Make the inputs from a sample.

        Raises:
            BadSample: If the sample cannot be used.
        """
        ...


@dataclass(frozen=True)
class Batch(Generic[Inputs]):
    """The samples of a forward pass. `len(batch)` is their number.

    Attributes:
        inputs: Stacked results of `Make`. Undefined if there are no keys.
        keys: One key per sample.
        bad: (reason, where) of each skipped sample.
    """

    inputs: Inputs
    keys: list[str]
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Batch[Inputs]:
        """Move the batch to a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch[Inputs]:
        """Copy the batch to pinned memory. torch's DataLoader calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch[Inputs]:
        return dataclasses.replace(self, inputs=map_tensors(self.inputs, function))


def stack(samples: Sequence[tuple[str, Inputs]], bad: list[tuple[str, str]]) -> Batch[Inputs]:
    """Stack the (key, inputs) of samples into a batch, with (reason, where) of the skipped samples."""
    keys = [key for key, _ in samples]
    return Batch(stacked([inputs for _, inputs in samples]), keys, bad)


def stacked(rows: Sequence[Inputs]) -> Inputs:
    """Stack the inputs of samples, field by field."""
    if not rows or rows[0] is None:
        return cast("Inputs", None)
    if isinstance(rows[0], Tensor):
        return cast("Inputs", torch.stack(cast("list[Tensor]", rows)))
    if isinstance(rows[0], Ragged):
        parts = [row.parts for row in cast("list[Ragged]", rows)]
        return cast("Inputs", Ragged(tuple(chain.from_iterable(parts))))
    if isinstance(rows[0], tuple):
        columns = zip(*cast("Any", rows), strict=True)
        return cast("Inputs", tuple(map(stacked, columns)))
    if isinstance(rows[0], Mapping):
        mappings = cast("Any", rows)
        batch = {}
        for key in rows[0]:
            batch[key] = stacked([row[key] for row in mappings])
        return cast("Inputs", batch)
    if isinstance(rows[0], str | list):  # a text, or several
        return cast("Inputs", list(rows))
    return _rebuilt(rows[0], lambda name: stacked([getattr(row, name) for row in rows]))


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply `function` to each tensor of the inputs."""
    if inputs is None:
        return inputs
    if isinstance(inputs, Tensor):
        return cast("Inputs", function(inputs))
    if isinstance(inputs, tuple):
        return cast("Inputs", tuple(map_tensors(part, function) for part in inputs))
    if isinstance(inputs, Mapping):
        return cast("Inputs", {key: map_tensors(part, function) for key, part in inputs.items()})
    if isinstance(inputs, str | list):  # texts
        return inputs
    return _rebuilt(inputs, lambda name: map_tensors(getattr(inputs, name), function))


def _rebuilt(inputs: Inputs, value: Callable[[str], Any]) -> Inputs:
    """Create a dataclass of the same type, with `value(name)` as the value of each field."""
    fields = dataclasses.fields(cast("Any", inputs))
    return type(inputs)(**{field.name: value(field.name) for field in fields})
