"""Packing of sequences of different lengths into rows with a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

__all__ = ["by_grid", "pack_rows", "take"]

T = TypeVar("T")
Grid = tuple[int, int]
"""Rows and columns of patches."""


def pack_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Distribute sequences among rows by first fit: each goes into the first row with enough room, or begins a new one.

    It needs at most 1.7 times the fewest possible rows. The result depends on the lengths and the budget alone.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of a row at most.

    Returns:
        The numbers of the sequences in each row, in ascending order. Rows are in the order of their first sequence.

    Raises:
        ValueError: If a sequence is longer than a row.

    Source: Dehghani et al. 2023, NaViT (arXiv:2307.06304), which packs greedily too.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        if length > budget:
            raise ValueError(f"expected sequences of at most {budget} tokens, got {length}")
        row = next((row for row, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(budget)
        rows[row].append(number)
        room[row] -= length
    return rows


def by_grid(grids: Sequence[Grid]) -> dict[Grid, list[int]]:
    """Collect the numbers of the images of each grid, which can be computed together."""
    numbers: dict[Grid, list[int]] = {}
    for number, grid in enumerate(grids):
        numbers.setdefault(grid, []).append(number)
    return numbers


def take(values: Sequence[T] | Mapping[int, T], numbers: Iterable[int]) -> list[T]:
    """Select the values of some images."""
    return [values[number] for number in numbers]
