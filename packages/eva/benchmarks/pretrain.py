"""Compare the pre-training step with a plain timm loop, and measure the teacher's share and stored targets.

    python packages/eva/benchmarks/pretrain.py [--quick] [--out packages/eva/benchmarks/results/pretrain]

Contestants run alternately, round after round. Ratios are medians over the rounds. On a CPU, times are process times
(one thread computes, one reads), so that other work on the machine does not count. On a GPU, they are wall-clock times.
"""

from __future__ import annotations

import argparse
import platform
import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import CUDA, STUDENT, TEACHER, make_pool, report
from cached import Cached
from step import Step

from vfm.models import build_clip, save_clip
from vfm.plugin import ClipCheckpoint, ImageDataset


def tables(result: dict[str, Any]) -> str:
    """Format the tables as Markdown."""
    step, cached = result["step"], result["cached"]
    columns = list(cached["fp32"])
    lines = [f"{result['machine']}; {result['models']}", "", "| a step | |", "|---|---|"]
    lines += [f"| {name} | {value:#.3g} |" for name, value in step.items()]
    lines += ["", "| targets | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in cached.items():
        cells = [_cell(column, row.get(column)) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Most memory of the process: {result['gib']:.2f} GiB."])


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    digits = {"ms a step": 1, "data wait, %": 1, "against live": 2, "bytes an image": 0, "cosine to exact": 5}
    return f"{value:,.{digits.get(column, 4)}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the numbers mean nothing")
    parser.add_argument("--data", type=Path, help="an image data set of a store; default: images of shapes")
    parser.add_argument("--teacher", type=Path, help="a ClipCheckpoint of a store with 8 x 8 patches; default: random")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        pool = (
            ImageDataset.load(options.data) if options.data else make_pool(root / "pool", 64 if options.quick else 256)
        )
        name = TEACHER if not options.quick else "ViT-Pico-8-64"
        teacher = (
            ClipCheckpoint.load(options.teacher) if options.teacher else save_clip(build_clip(name, seed=0), root / "t")
        )
        step, cached = (kind(root / kind.__name__, pool, teacher, quick=options.quick) for kind in (Step, Cached))
        result = {
            "machine": torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU, one thread",
            "models": f"student {STUDENT}, teacher {teacher.model}, batch {step.batch}, torch {torch.__version__}",
            "step": step.measure(),
            "cached": cached.measure(),
        }
    result["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report(result, tables(result), options.out)


if __name__ == "__main__":
    main()
