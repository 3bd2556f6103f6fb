"""Each worker begins with its share of the slow tests, and no test is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from order import SLOW, slow_first


@given(st.integers(0, 9), st.integers(20, 60), st.integers(1, 4))
def test_every_part_begins_with_slow_tests_and_ends_with_quick_ones(
    num_slow: int, num_quick: int, workers: int
) -> None:
    tests = [(SLOW[number % len(SLOW)], number) for number in range(num_slow)]
    tests += [("test_quick.py", number) for number in range(num_quick)]
    found = slow_first(tests, workers, lambda test: test[0])
    assert sorted(found) == sorted(tests)
    assert [test for test in found if test[0] not in SLOW] == tests[num_slow:]
    start = 0
    for worker in range(workers):  # the parts that pytest-xdist's work stealing hands out first
        size = (len(tests) - start) // (workers - worker)
        slow = [name in SLOW for name, _ in found[start : start + size]]
        assert slow == sorted(slow, reverse=True)
        assert abs(sum(slow) - num_slow / workers) < 1
        start += size


def test_a_selection_of_slow_tests_alone_is_kept() -> None:
    tests = [("test_docs.py", 0), ("test_fuzz.py", 1), ("test_packages.py", 2), ("test_quick.py", 3)]
    assert sorted(slow_first(tests, 3, lambda test: test[0])) == sorted(tests)
