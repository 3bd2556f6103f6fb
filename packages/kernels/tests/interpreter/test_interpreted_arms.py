"""The arms of the benchmark run what their names say: ours launches our kernels, and nothing else does."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from vfm_kernels import masked_cosine_loss, use_kernels
from vfm_kernels.launches import recorded_launches

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = (
    "run", "problems", "shapes", "checking", "timing", "steps", "page", "records", "fill_table", "faults", "rehearsal",
)  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    """Return a function that imports a module of the benchmark, which is in no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def problem(benchmarks):
    build = benchmarks("problems").masked_cosine
    made = build(torch.device("cpu"), batch=2, tokens=5, channels=16)
    del made.implementations["torch.compile"]  # which takes longer than all else
    return made


def test_launches_are_recorded_within_the_block_only():
    student, target = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    with use_kernels("triton"), recorded_launches() as outer:
        with recorded_launches() as inner:
            masked_cosine_loss(student, target, torch.ones(2, 3, dtype=torch.bool))
        masked_cosine_loss(student, target, torch.ones(2, 3, dtype=torch.bool))
    assert inner
    assert outer == inner * 2
    with use_kernels("reference"), recorded_launches() as none:
        masked_cosine_loss(student, target, torch.ones(2, 3, dtype=torch.bool))
    assert none == []


def test_ours_launches_and_torch_does_not(benchmarks, problem):
    errors = benchmarks("checking").check(problem)
    assert errors["ours"].holds
    assert errors["ours"].launches > 0
    assert errors["torch"].launches == 0


FAULTS = [
    "ours is torch's", "the library launches our kernel", "a wrong kernel", "a kernel that waits for the device",
    "a kernel that does not repeat its bits", "a slow kernel",
]  # fmt: skip


def test_every_fault_of_an_arm_is_planted(benchmarks):
    assert list(benchmarks("faults").IN_AN_ARM) == FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(benchmarks, problem, name):
    before = dict(problem.implementations)
    assert benchmarks("faults").IN_AN_ARM[name](problem)
    assert problem.implementations == before


def test_an_arm_without_a_fault_is_not_reported(benchmarks, problem):
    """Each fault is found by its effect: with the arm's own function in its place nothing is said."""
    faults = benchmarks("faults")
    for name, function in problem.implementations.items():
        assert faults.said_of(problem, name, function) == ""


def test_the_rehearsal_counts_the_arms_of_each_op(benchmarks, monkeypatch):
    rehearsal = benchmarks("rehearsal")
    monkeypatch.setattr(rehearsal, "TINY", [entry for entry in rehearsal.TINY if "kept" in entry[1]][:1])
    arms = {arm: (int(launches), int(calls)) for _, arm, launches, calls in rehearsal.arms_of_ops()}
    assert arms["ours"][0] == 2
    assert arms["torch"][0] == 0 < arms["torch"][1]
