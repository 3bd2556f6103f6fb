"""Items computed in a background thread, a few ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], num_ahead: int, thread_name: str) -> Iterator[T]:
    """Yield the same items (none of them None), computed in a thread while the caller uses the ones before.

    Decoding and torch both release Python's lock.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=thread_name) as thread:
        coming = deque(thread.submit(next, remaining, None) for _ in range(num_ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, remaining, None))
            yield item
