"""Positions, repetitions and blanks in a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import count
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def positions(items: Iterable[T]) -> dict[T, int]:
    """Map each item to its position, counted from 0. An item that occurs twice has its last position."""
    return dict(zip(items, count(), strict=False))


def repeated(items: Iterable[T]) -> list[T]:
    """List the items that occur more than once, each once."""
    return [item for item, number in Counter(items).items() if number > 1]


def stripped(words: Iterable[str]) -> list[str]:
    """Remove white space around words, and leave out blank ones."""
    return list(filter(None, map(str.strip, words)))
