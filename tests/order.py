"""The order of the tests for several workers: each begins with slow ones, and quick ones fill the time at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

# Seconds on an idle core, by what a test's name contains; the first that fits counts. Others take a few.
SLOW = {
    "alone[core]": 680, "alone[diva]": 300, "alone[kernels]": 260, "alone[eva]": 250, "alone[clip]": 190,
    "alone[curation]": 190, "test_no_damage": 190, "commands_run[README.md]": 150, "bit_identical[1]": 100,
    "commands_run[results.md]": 80, "test_it_runs_and_shows": 60, "test_all_six_run": 40,
    "plans_and_runs_a_recipe_up_to": 40, "[mypy]": 30, "test_claim_runs": 15,
}  # fmt: skip
T = TypeVar("T")


def seconds_of(name: str) -> int:
    """Return the seconds of a slow test, and 0 for a quick one."""
    return next((seconds for part, seconds in SLOW.items() if part in name), 0)


def slow_first(tests: Sequence[T], workers: int, name_of: Callable[[T], str]) -> list[T]:
    """Return the tests in an order whose equal parts, one for each worker, begin with equally long slow tests.

    The slowest comes first, and each goes to the worker that has the fewest seconds so far. Quick tests stay in their
    order, so that those of a file, which may share a fixture, are run by the same worker.

    Args:
        tests: all tests.
        workers: number of workers; each gets one part of the order, and later what others have not begun.
        name_of: returns the name of a test, with its parameters.
    """
    slow = sorted((test for test in tests if seconds_of(name_of(test))), key=lambda test: -seconds_of(name_of(test)))
    quick = [test for test in tests if not seconds_of(name_of(test))]
    shares: list[list[T]] = [[] for _ in range(workers)]
    load = [0] * workers
    for test in slow:
        worker = load.index(min(load))
        shares[worker].append(test)
        load[worker] += seconds_of(name_of(test))
    found: list[T] = []
    for worker, share in enumerate(shares):
        size = (len(tests) - len(found)) // (workers - worker)
        taken = max(0, size - len(share))
        found += share + quick[:taken]
        quick = quick[taken:]
    return found + quick
