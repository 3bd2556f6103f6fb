"""Look up the places of items in a sequence."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import count
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def positions(items: Iterable[T]) -> dict[T, int]:
    """Map each item to its position, counted from 0. An item that occurs twice has its last position."""
    return dict(zip(items, count(), strict=False))
