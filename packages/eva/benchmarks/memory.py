"""Memory of pre-training: measured on this CPU at a small size, and counted for the papers' recipes.

    python packages/eva/benchmarks/memory.py [--quick] [--out packages/eva/benchmarks/results/memory]

Each case is measured in a separate process: the peak resident memory, from reading the data to the report's images. The
counted numbers come from tensors without contents (`counted.py`). The papers' recipes were not run.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import TEACHER, context, make_pool, pretrain, report
from counted import RECIPES, counted

from vfm.models import build_clip, save_clip
from vfm.plugin import ClipCheckpoint, Pool, SampleCache
from vfm_eva import EvaTargets

STUDENT = "eva02_mini_patch14_112"
CACHED = {"teacher": None, "targets": "targets"}
VISIBLE = {"encode": "visible", "mask": {"type": "random", "ratio": 0.75}, "decoder": {"width": 96, "num_heads": 3}}
CASES: dict[str, dict[str, Any] | None] = {
    "nothing but imports": None,
    "teacher at hand": {},
    "teacher at hand, grad_checkpointing": {"grad_checkpointing": True},
    "cached targets": CACHED,
    "cached targets, grad_checkpointing": {**CACHED, "grad_checkpointing": True},
    "visible patches alone (EVA-L), teacher at hand": VISIBLE,
    "visible patches alone (EVA-L), cached targets": VISIBLE | CACHED,
}
QUICK = ["nothing but imports", "teacher at hand", "cached targets"]
LENGTH = {False: (2, 128), True: (1, 8)}  # steps, images per step; the second is for tests
GIB = 2**30


def measured(names: list[str], *, quick: bool) -> dict[str, float]:
    """Measure the peak resident bytes of each case's process."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        pool = make_pool(root / "pool", 64 if quick else 256)
        teacher = save_clip(build_clip(TEACHER, seed=0), root / "teacher")
        stage = EvaTargets.model_validate(
            {"name": "targets", "data": "pool", "teacher": "teacher", "grid": [8, 8], "runtime": {"threads": 1}}
        )
        targets = stage.run(context(root / "targets", pool=pool, teacher=teacher))
        paths = [str(made.path) for made in (pool, teacher, targets)]
        found = {}
        for name in names:
            command = [sys.executable, __file__, "--case", name, str(root / f"case-{len(found)}"), *paths]
            done = subprocess.run(command + ["--quick"] * quick, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = float(done.stdout)
    return found


def run_case(name: str, folder: str, pool: str, teacher: str, targets: str, *, quick: bool) -> int:
    """Run a case in this process, and return its peak resident bytes."""
    torch.set_num_threads(1)
    if (changes := CASES[name]) is not None:
        inputs = {
            "pool": Pool.load(pool),
            "teacher": ClipCheckpoint.load(teacher),
            "targets": SampleCache.load(targets),
        }
        pretrain(*LENGTH[quick], model=STUDENT, **changes).run(context(Path(folder), **inputs))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def tables(result: dict[str, Any]) -> str:
    """Format the tables as Markdown."""
    lines = [f"{result['machine']}; {result['models']}", "", "| measured | GiB | above imports |", "|---|---|---|"]
    least = result["measured"]["nothing but imports"]
    lines += [
        f"| {name} | {size / GIB:.2f} | {(size - least) / GIB:.2f} |" for name, size in result["measured"].items()
    ]
    columns = list(next(iter(result["counted"].values())))
    lines += ["", "Computed, not run; GiB a process:", "", "| recipe | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in result["counted"].items():
        cells = [f"{value:,}" if column == "micro-batch" else f"{value / GIB:.2f}" for column, value in row.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few cases with one small step; the numbers mean nothing")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)  # runs a single case in this process
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.case:
        print(run_case(*options.case, quick=options.quick))
        return
    steps, batch = LENGTH[options.quick]
    result = {
        "machine": f"{platform.machine()} CPU, one thread, {steps} steps of {batch} images",
        "models": f"student {STUDENT}, teacher {TEACHER}, torch {torch.__version__}",
        "measured": measured(QUICK if options.quick else list(CASES), quick=options.quick),
        "counted": {name: counted(name) for name in (RECIPES[:1] if options.quick else RECIPES)},
    }
    report(result, tables(result), options.out)


if __name__ == "__main__":
    main()
