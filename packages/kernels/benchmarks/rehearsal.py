"""Rehearse the benchmark without a GPU: `python packages/kernels/benchmarks/rehearsal.py` prints two tables.

In Triton's interpreter each arm of each op, and of a training step, proves which code it ran: the launches of our
kernels and torch's operations are counted, forward and backward. Then faults are planted, and what the benchmark says
of each is printed. The exit code is 1 if an arm runs other code than its name says, or if a fault is not found.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
from checking import Dispatched, check, misnamed, one_line
from faults import IN_A_RUN, IN_AN_ARM
from problems import Problem, masked_cosine
from shapes import TINY
from steps import EAGER_WAYS, NAMES, trained

from vfm_kernels.launches import recorded_launches

CPU = torch.device("cpu")
Arm = tuple[str, str, str, str]  # op or model, arm, launches of ours, library calls or what is wrong


def main() -> None:
    """Print both tables."""
    all_well = True
    print("| op or step | arm | launches of ours | calls of torch |\n|---|---|--:|--:|")
    for arm in (*arms_of_ops(), *arms_of_steps()):
        print(f"| {' | '.join(arm)} |", flush=True)
        all_well &= not arm[3].startswith(("failed", "wrong"))
    print("\n| planted fault | found | what is said |\n|---|---|---|")
    for name, said in planted_faults():
        print(f"| {name} | {'yes' if said else 'NO'} | {said} |", flush=True)
        all_well &= bool(said)
    sys.exit(not all_well)


def arms_of_ops() -> Iterator[Arm]:
    """Compare all arms of one tiny problem of each op with float64, and yield what they ran."""
    done = {"matmul"}  # has no arm of ours
    for build, arguments, _ in TINY:
        problem = without_compiler(build(CPU, **arguments))
        if problem.op in done:
            continue
        done.add(problem.op)
        for name, error in check(problem).items():
            if isinstance(error, str):
                yield problem.op, name, "", error
            elif not error.holds:
                yield problem.op, name, "", f"wrong: an error of {error.relative:.1e}"
            else:
                yield problem.op, name, str(error.launches), str(error.library_calls)


def arms_of_steps() -> Iterator[Arm]:
    """Train each tiny model by one step in each way that is not compiled, and yield what ran."""
    for name, way in itertools.product(NAMES, EAGER_WAYS):
        try:
            yield f"step of {name}", way, *_step(name, way)
        except ImportError as error:
            yield f"step of {name}", way, "", f"absent: {error.name} is not installed"
        except Exception as error:  # the others still run
            yield f"step of {name}", way, "", one_line(error)


def _step(name: str, way: str) -> tuple[str, str]:
    with (
        trained(name, way, CPU, tiny=True) as (train, _),
        recorded_launches() as launches,
        Dispatched() as dispatched,
    ):
        train()
    reason = misnamed(way.startswith("ours"), launches)
    return str(len(launches)), f"failed: {reason}" if reason else str(dispatched.num_computing)


def planted_faults() -> Iterator[tuple[str, str]]:
    """Plant each fault and yield its name and what is said of it; empty if it is not found."""
    problem = without_compiler(masked_cosine(CPU, batch=2, tokens=5, channels=16))
    for name, plant in IN_AN_ARM.items():
        yield name, plant(problem)
    for name, plant_in in IN_A_RUN.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, plant_in(Path(folder))


def without_compiler(problem: Problem) -> Problem:
    """Drop the compiled arm, which takes longer than all else and runs torch's code by another way."""
    problem.implementations.pop("torch.compile", None)
    return problem


if __name__ == "__main__":
    main()
