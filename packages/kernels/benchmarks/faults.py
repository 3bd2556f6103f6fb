"""Faults that are planted in the benchmark, each with what it says of them, to prove that none would go unnoticed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checking import Error, check
from fill_table import measurements
from problems import Problem
from records import Row, Table
from run import UNFINISHED, _rows
from timing import Roof
from torch import Tensor

from vfm_kernels.dispatch.choosing import choose_by_times

HERE = Path(__file__).parent


def wrongly_named(problem: Problem) -> str:
    """Plant torch's operations under the name of ours."""
    return said_of(problem, "ours", problem.implementations["torch"])


def library_with_kernel(problem: Problem) -> str:
    """Plant our kernel in the library's arm."""
    return said_of(problem, "torch", problem.implementations["ours"])


def wrong_kernel(problem: Problem) -> str:
    """Plant a kernel whose results are a tenth too large."""
    ours = problem.implementations["ours"]
    return said_of(problem, "ours", lambda x: ours(x) * 1.1)


def waiting_kernel(problem: Problem) -> str:
    """Plant a kernel whose caller reads a value of the device."""
    ours = problem.implementations["ours"]
    return said_of(problem, "ours", lambda x: ours(x) + 0 * x.sum().item())


def unrepeatable_kernel(problem: Problem) -> str:
    """Plant a kernel whose second result differs in the last bits."""
    ours, calls = problem.implementations["ours"], iter(range(99))
    return said_of(problem, "ours", lambda x: ours(x) * (1 + 1e-6 * next(calls)))


def slow_kernel(problem: Problem) -> str:
    """Plant slow forms of both arms in turn: the other one must be chosen from their times."""
    chosen = []
    for name in ("ours", "torch"):
        with _replaced(problem, name, _slowed(problem.implementations[name])):
            rows = list(_rows(problem, check(problem), Roof(1e9, 1e9), torch.device("cpu"), 2))
        table = measurements(rows, {"card": "a card, sm_90", "installed": ""})
        chosen.append(choose_by_times(table, problem.size._replace(backward=True)).name)
    return "the other arm is chosen" if chosen == ["torch", "ours"] else ""


def stopped_part(folder: Path) -> str:
    """Stop a part after its first row, with half of a line: the repeated command keeps that row and adds the rest."""
    command = [
        sys.executable,
        str(HERE / "run.py"),
        "--tiny",
        "--repeats",
        "2",
        "--only",
        "matmul",
        "--out",
        str(folder),
    ]
    stopped = subprocess.run([*command, "--seconds", "0"], capture_output=True)
    path = folder / "kernels.csv"
    first = path.read_text()
    with path.open("a") as file:
        file.write("matmul,half of a line")  # as a stop within a write leaves it
    subprocess.run(command, capture_output=True, check=True)
    directions = [row.direction for row in Table(path, Row).rows]
    resumed = path.read_text().startswith(first) and directions == ["forward", "backward"]
    return "it goes on, no row is lost" if stopped.returncode == UNFINISHED and resumed else ""


def full_disk(folder: Path) -> str:
    """Fill the disk within a write, by a limit on the size of files: the earlier row stays, and the error says so."""
    row = Row("info_nce", "(2)", "forward", "ours", 1e-3, 2.0, note="kernel")
    path = folder / "full.csv"
    Table(path, Row).append(row)
    limit = path.stat().st_size + 20
    code = (
        "import resource, sys; from pathlib import Path; from records import Row, Table\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "Table(Path(sys.argv[1]), Row).append(Row('info_nce', '(3)', 'forward', 'ours', 1.0, 2.0))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=HERE, capture_output=True, text=True)
    message = ended.stderr.strip().rpartition("csv: ")[2]
    return message if ended.returncode == 1 and Table(path, Row).rows == [row] else ""


# Name of a fault -> what plants it and says how it was found; empty if it was not.
IN_AN_ARM: dict[str, Callable[[Problem], str]] = {
    "ours is torch's": wrongly_named,
    "the library launches our kernel": library_with_kernel,
    "a wrong kernel": wrong_kernel,
    "a kernel that waits for the device": waiting_kernel,
    "a kernel that does not repeat its bits": unrepeatable_kernel,
    "a slow kernel": slow_kernel,
}
IN_A_RUN: dict[str, Callable[[Path], str]] = {"a stopped part": stopped_part, "a full disk": full_disk}


def said_of(problem: Problem, name: str, fault: Callable[..., Any]) -> str:
    """Say what the comparison notes of an arm that is replaced by a fault; empty if it would be timed."""
    with _replaced(problem, name, fault):
        note = check(problem)[name]
    if isinstance(note, Error):
        return "" if note.holds else "wrong: not timed"
    return note


@contextmanager
def _replaced(problem: Problem, name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = problem.implementations[name]
    problem.implementations[name] = function
    try:
        yield
    finally:
        problem.implementations[name] = before


def _slowed(function: Callable[..., Any], seconds: float = 2.0) -> Callable[..., Any]:
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            time.sleep(seconds)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            time.sleep(seconds)
            return grad

    return lambda x: function(Slow.apply(x))
