"""The order of the tests for several workers: each begins with slow ones, and quick ones fill the time at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

SLOW = ("test_packages.py", "test_fuzz.py", "test_kill_and_resume.py", "test_claims.py", "test_docs.py")  # minutes each
T = TypeVar("T")


def slow_first(tests: Sequence[T], workers: int, file_of: Callable[[T], str]) -> list[T]:
    """Return the tests in an order whose equal parts, one for each worker, begin with their share of the slow tests.

    Quick tests stay in their order, so that those of a file, which may share a fixture, are run by the same worker.

    Args:
        tests: all tests.
        workers: number of workers; each gets one part of the order, and later what others have not begun.
        file_of: returns the name of a test's file.
    """
    slow = sorted((test for test in tests if file_of(test) in SLOW), key=lambda test: SLOW.index(file_of(test)))
    quick = [test for test in tests if file_of(test) not in SLOW]
    found: list[T] = []
    for worker in range(workers):
        size = (len(tests) - len(found)) // (workers - worker)
        share = slow[worker::workers]
        taken = max(0, size - len(share))
        found += share + quick[:taken]
        quick = quick[taken:]
    return found + quick
