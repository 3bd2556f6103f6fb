"""Compare the tuning step with a plain loop that follows the released code: multiplications, time, memory.

    python packages/diva/benchmarks/speed.py [--quick] [--out packages/diva/benchmarks/results/speed]

Multiplications are counted at the size of Stable Diffusion 2.1 and ViT-L-14, which are not run. Time is measured with
tiny models. The variants take their steps in turn on the same batches, and seconds are CPU seconds of this process, so
that other work on the machine does not count.
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

SIZES = {False: (12, 16, 64), True: (1, 2, 2)}  # rounds, images per timed step, images per step for memory
MIB = 2**20


def tables(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    lines = [result["machine"], "", "| a step, per image | GFLOP | fewer by |", "|---|--:|--:|"]
    most = result["counted"]["plain loop"]
    lines += [f"| {name} | {value / 1e9:,.0f} | {most / value:.2f}x |" for name, value in result["counted"].items()]
    toy = result["toy"]
    lines += [
        "",
        f"| tiny models, {result['batch']} images | ms per step | speed-up | by FLOP | loss difference |",
    ]
    lines.append("|---|--:|--:|--:|--:|")
    for name, row in result["timed"].items():
        flops = toy["plain loop"] / toy[name]
        cells = f"{row['ms a step']:.0f} | {row['times as fast']:.2f}x | {flops:.2f}x | {row['loss difference']:.1g}"
        lines.append(f"| {name} | {cells} |")
    least = result["memory"]["models, no step"]
    lines += ["", f"| memory of tiny models, {result['memory_batch']} images | MiB | above the models' |"]
    lines.append("|---|--:|--:|")
    lines += [
        f"| {name} | {size / MIB:,.0f} | {(size - least) / MIB:,.0f} |" for name, size in result["memory"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models only, one round; the numbers are meaningless")
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
