"""Items made ahead of whoever takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], num_ahead: int, thread_name: str) -> Iterator[T]:
    """The same items (none of them None), made in a thread while the caller computes, so many ahead of him.

    Decoding and torch both let go of Python's lock.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=thread_name) as thread:
        coming = deque(thread.submit(next, remaining, None) for _ in range(num_ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, remaining, None))
            yield item
