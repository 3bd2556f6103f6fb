"""The arms of the benchmark run what their names say: ours launches our kernels, and nothing else does."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

from vfm_kernels import masked_cosine_loss, use_kernels
from vfm_kernels.dispatch.choosing import choose_by_times
from vfm_kernels.launches import recorded_launches

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("run", "problems", "shapes", "checking", "timing", "steps", "page", "records", "fill_table")


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


def test_planted_faults_are_found(benchmarks, problem):
    """A library that runs our kernel, ours that is torch's, a wrong kernel, and one that waits for the device."""
    ours, plain = problem.implementations["ours"], problem.implementations["torch"]
    check = benchmarks("checking").check
    problem.implementations.update(ours=plain, torch=ours)
    errors = check(problem)
    assert errors["ours"] == "failed: it launched none of our kernels, so another implementation ran"
    assert errors["torch"].startswith("failed: it launched our masked_cosine_kernel")
    problem.implementations.update(ours=lambda x: ours(x) * 1.1, torch=plain)
    assert not check(problem)["ours"].holds
    problem.implementations["ours"] = lambda x: ours(x) + 0 * x.sum().item()
    assert check(problem)["ours"] == "failed: the host waits in _local_scalar_dense"


def test_a_slow_kernel_is_not_chosen(benchmarks, problem):
    """In the interpreter ours is slow, a sleep plants a slow library; the fastest of both is in the table."""
    run, fill, plain = benchmarks("run"), benchmarks("fill_table"), problem.implementations["torch"]

    def chosen() -> str:
        rows = list(run._rows(problem, run.check(problem), run.Roof(1e9, 1e9), torch.device("cpu"), 2))
        table = fill.measurements(rows, {"card": "a card, sm_90", "installed": ""})
        return choose_by_times(table, problem.size._replace(backward=True)).name

    assert chosen() == "torch"

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(2)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(2)
            return grad

    problem.implementations["torch"] = lambda x: plain(Slow.apply(x))
    assert chosen() == "ours"
