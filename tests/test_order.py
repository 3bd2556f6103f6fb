"""Each worker begins with its share of the slow tests, and no test is lost."""

from __future__ import annotations

from hypothesis import given, strategies as st

from order import SLOW, seconds_of, slow_first


@given(st.lists(st.sampled_from(sorted(SLOW)), max_size=9), st.integers(30, 60), st.integers(1, 4))
def test_every_part_begins_with_slow_tests_and_ends_with_quick_ones(
    slow_names: list[str], num_quick: int, workers: int
) -> None:
    tests = [(name, number) for number, name in enumerate(slow_names)]
    tests += [("test_quick", number) for number in range(num_quick)]
    found = slow_first(tests, workers, lambda test: test[0])
    assert sorted(found) == sorted(tests)
    assert [test for test in found if test[0] == "test_quick"] == tests[len(slow_names) :]
    start, loads = 0, []
    for worker in range(workers):  # the parts that pytest-xdist's work stealing hands out first
        size = (len(tests) - start) // (workers - worker)
        seconds = [seconds_of(name) for name, _ in found[start : start + size]]
        assert seconds == sorted(seconds, reverse=True)
        loads.append(sum(seconds))
        start += size
    slowest = max((seconds_of(name) for name in slow_names), default=0)
    assert max(loads) - min(loads) <= slowest


def test_a_selection_of_slow_tests_alone_is_kept() -> None:
    tests = [("test_claim_runs", 0), ("test_no_damage", 1), ("alone[core]", 2), ("test_quick", 3)]
    assert sorted(slow_first(tests, 3, lambda test: test[0])) == sorted(tests)
