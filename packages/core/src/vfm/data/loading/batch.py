"""Batches: the inputs of several samples, stacked, with their keys and the samples that were skipped."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from vfm.data.samples.sample import Sample

Inputs = TypeVar("Inputs")
"""The tensors of a sample or of a batch: a frozen dataclass, a tuple or a mapping of tensors, None, texts, or these."""
MadeInputs = TypeVar("MadeInputs", covariant=True)


@dataclass(frozen=True)
class SampleDraw:
    """One use of a sample in a training: everything random about it is drawn from `seed`."""

    seed: int  # 63 bits, the same in every process
    step: int
    index: int  # of the sample in its source

    @classmethod
    def of(cls, seed: int, step: int, index: int) -> SampleDraw:
        """Return the draw for a training's seed, a step and a sample."""
        digest = hashlib.blake2b(struct.pack("<qqq", seed, step, index), digest_size=8).digest()
        return cls(int.from_bytes(digest, "little") >> 1, step, index)


@dataclass(frozen=True)
class Ragged:
    """Tensors whose sizes differ between samples, such as the boxes of each image: `parts` has one for each sample.

    A sample has one part; in a batch the parts of its samples follow each other.
    """

    parts: tuple[Tensor, ...]


class Make(Protocol[MadeInputs]):
    """Makes a task's inputs of one sample. It must be picklable, since workers call it."""

    def __call__(self, sample: Sample, draw: SampleDraw, /) -> MadeInputs:
        """Return the inputs of one sample.

        Raises:
            BadSample: the sample cannot be used.
        """
        ...


@dataclass(frozen=True)
class Batch(Generic[Inputs]):
    """The samples of one forward pass. `len(batch)` is their number.

    inputs: as `Make` returns them, stacked; not to be used where there are no keys.
    keys: one per sample.
    bad: (reason, where) of each sample that was skipped.
    """

    inputs: Inputs
    keys: list[str]
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Batch[Inputs]:
        """Return the batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch[Inputs]:
        """Return the batch in pinned memory; torch's DataLoader calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch[Inputs]:
        return dataclasses.replace(self, inputs=map_tensors(self.inputs, function))


def stack(made: Sequence[tuple[str, Inputs]], bad: list[tuple[str, str]]) -> Batch[Inputs]:
    """Return the batch of (key, inputs) of samples, and of the samples that were skipped."""
    return Batch(_stacked([inputs for _, inputs in made]), [key for key, _ in made], bad)


def _stacked(rows: Sequence[Inputs]) -> Inputs:
    if not rows or rows[0] is None:
        return cast("Inputs", None)
    if isinstance(rows[0], Tensor):
        return cast("Inputs", torch.stack(cast("list[Tensor]", rows)))
    if isinstance(rows[0], Ragged):
        return cast("Inputs", Ragged(tuple(part for row in cast("list[Ragged]", rows) for part in row.parts)))
    if isinstance(rows[0], tuple):
        return cast("Inputs", tuple(_stacked(parts) for parts in zip(*cast("Any", rows), strict=True)))
    if isinstance(rows[0], Mapping):
        return cast("Inputs", {key: _stacked([row[key] for row in cast("Any", rows)]) for key in rows[0]})
    if isinstance(rows[0], str | list):  # a text, or several
        return cast("Inputs", list(rows))
    return _rebuilt(rows[0], lambda name: _stacked([getattr(row, name) for row in rows]))


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the inputs with `function` applied to each tensor."""
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
    """Return a dataclass of the same type with the value of each field."""
    names = [field.name for field in dataclasses.fields(cast("Any", inputs))]
    return type(inputs)(**{name: value(name) for name in names})
