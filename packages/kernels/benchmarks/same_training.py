"""Train EVA and CLIP for 50 steps with the kernels and without: `python packages/kernels/benchmarks/same_training.py`.

Both runs start from the same weights and see the same batch. In bf16 the losses drift apart by rounding; how far they
may is known from a third run, plain torch from weights that differ in their last bit. The losses are written to
`same_training.csv`; the script fails if the kernels drift more than `MULTIPLE` times as far.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src")]

from problems import HALF  # noqa: E402
from records import replace  # noqa: E402
from steps import Loss, build  # noqa: E402
from torch import nn  # noqa: E402

import vfm_kernels as vk  # noqa: E402

MODELS = ("EVA02-L", "CLIP-L/14")
HEAD = ["model", "step", "plain", "kernels", "last bit"]
MULTIPLE = 3.0
FLOOR = 1e-3  # of the loss: the third run may be lucky


def main() -> None:
    """Parse the command line, train and write the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT") or HERE / "results")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--tiny", action="store_true", help="meaningless sizes, without kernels on a CPU, to test this script"
    )
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        parser.error("expected a CUDA device; --tiny runs on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    wrong = []
    file = options.out / "same_training.csv"
    old = list(csv.reader(file.read_text().splitlines())) if file.exists() else []
    lines = [HEAD, *(line for line in old if len(line) == len(HEAD) and line != HEAD)]
    for name in MODELS:
        if not any(line[0] == name for line in lines):  # a repeated command goes on with the next model
            each = losses(name, device, options.tiny, 4 if options.tiny else options.steps)
            lines += [[name, str(step), *map(repr, values)] for step, values in enumerate(zip(*each, strict=True))]
            replace(file, "".join(",".join(line) + "\n" for line in lines))
        columns = zip(*(map(float, line[2:]) for line in lines if line[0] == name), strict=True)
        plain, ours, nudged = map(list, columns)
        drift, allowed = _drift(ours, plain), MULTIPLE * _drift(nudged, plain) + FLOOR * abs(plain[0])
        print(f"{name}: losses differ by {drift:.2e} at most, {allowed:.2e} allowed; {plain[0]:.4f} -> {plain[-1]:.4f}")
        wrong += [name] * (not drift <= allowed)
    if wrong:
        sys.exit(f"the kernels train {', '.join(wrong)} differently")


def losses(name: str, device: torch.device, tiny: bool, num_steps: int) -> list[list[float]]:
    """Return the losses of plain torch, of the kernels, and of plain torch from weights moved by their last bit."""
    torch.manual_seed(0)
    model, loss = build(name, device, tiny)
    start = copy.deepcopy(model.state_dict())
    kernels = "triton" if device.type == "cuda" else "auto"
    found = []
    for choice, nudge in (("reference", 0.0), (kernels, 0.0), ("reference", torch.finfo(torch.float32).eps)):
        model.load_state_dict(
            {key: value * (1 + nudge) if value.is_floating_point() else value for key, value in start.items()}
        )
        with vk.use_kernels(choice), vk.accelerate(model):
            found.append(_train(model, loss, device, num_steps))
    return found


def _train(model: nn.Module, loss: Loss, device: torch.device, num_steps: int) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    values = []
    for _ in range(num_steps):
        with torch.autocast(device.type, HALF):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.detach())
    return torch.stack(values).float().tolist()


def _drift(ours: list[float], plain: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, plain, strict=True))


if __name__ == "__main__":
    main()
