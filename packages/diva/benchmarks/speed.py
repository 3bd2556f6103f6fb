"""The tuning step against a plain loop that works as the released code does: multiplications, time, memory.

    python packages/diva/benchmarks/speed.py [--quick] [--out packages/diva/benchmarks/results/speed]

Multiplications are counted at Stable Diffusion 2.1's and ViT-L-14's size, which is not run. Time is measured at a toy's
size; what is compared takes its steps in turn on the same batches, and seconds are those of this process, so other work
on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import diffusers
import torch
from counted import counted
from memory import measured
from parts import FULL, TOY
from timed import timed

SIZES = {False: (12, 16, 64), True: (1, 2, 2)}  # rounds, pictures of a timed step, and of one whose memory is seen
MIB = 2**20


def tables(result: dict[str, Any]) -> str:
    """As markdown."""
    lines = [result["machine"], "", "| a step, per picture | GFLOP | fewer by |", "|---|--:|--:|"]
    most = result["counted"]["plain loop"]
    lines += [f"| {name} | {value / 1e9:,.0f} | {most / value:.2f}x |" for name, value in result["counted"].items()]
    toy = result["toy"]
    lines += ["", f"| at a toy's size, {result['batch']} pictures | ms a step | as fast | by FLOP | losses apart |"]
    lines.append("|---|--:|--:|--:|--:|")
    for name, row in result["timed"].items():
        flops = toy["plain loop"] / toy[name]
        cells = f"{row['ms a step']:.0f} | {row['times as fast']:.2f}x | {flops:.2f}x | {row['losses apart, most']:.1g}"
        lines.append(f"| {name} | {cells} |")
    least = result["memory"]["models, no step"]
    lines += ["", f"| memory at a toy's size, {result['memory_batch']} pictures | MiB | above the models' |"]
    lines.append("|---|--:|--:|")
    lines += [
        f"| {name} | {size / MIB:,.0f} | {(size - least) / MIB:,.0f} |" for name, size in result["memory"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toys alone, one round; the numbers mean nothing")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, batch, memory_batch = SIZES[options.quick]
    result = {
        "machine": f"{platform.machine()} CPU, one thread, fp32; torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}; {rounds} rounds",
        "counted": counted(TOY if options.quick else FULL),
        "toy": counted(TOY, batch),
        "batch": batch,
        "timed": timed(rounds=rounds, batch_size=batch),
        "memory_batch": memory_batch,
        "memory": measured(memory_batch),
    }
    print(tables(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(tables(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
