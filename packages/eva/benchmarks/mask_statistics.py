"""Compare statistics of the masks with EVA's released generator, and measure the time per mask.

    python packages/eva/benchmarks/mask_statistics.py [--masks 20000] [--out results/masks]

Prints a table and, with `--out`, writes it as OUT.md and the numbers as OUT.json. The released generator's numbers were
measured over 20,000 masks (`masking_generator.py` of the public EVA repository, 105 of 16 x 16 patches).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from bench import report
from torch import Tensor

from vfm_kernels import block_mask, block_mask_exact, random_mask

GRID, COUNT = (16, 16), 105
DRAW: dict[str, Callable[..., Tensor]] = {"block": block_mask, "block_exact": block_mask_exact, "random": random_mask}
RELEASED = {
    "mean count": 104.45,
    "smallest count": 94,
    "share with 105": 0.653,
    "share with 104": 0.243,
    "share with 103": 0.056,
    "share with 102": 0.027,
    "share with 101": 0.007,
    "share with fewer": 0.014,
    "corner masked": 0.037,
    "centre masked": 0.752,
}
MICROSECONDS = "microseconds a mask"


def mask_statistics(draw: Callable[..., Tensor], num_masks: int) -> dict[str, float]:
    """Compute the statistics of the masks, the rows of the table."""
    masks = draw(range(num_masks), GRID, COUNT)
    counts, places = masks.sum(dim=1), masks.double().mean(dim=0).view(GRID)
    shares = {count: (counts == count).double().mean().item() for count in range(101, 106)}
    return {
        "mean count": counts.double().mean().item(),
        "smallest count": counts.min().item(),
        **{f"share with {count}": shares[count] for count in range(105, 100, -1)},
        "share with fewer": max(0.0, 1 - sum(shares.values())),
        "corner masked": places[[0, 0, -1, -1], [0, -1, 0, -1]].mean().item(),
        "centre masked": places.max().item(),
    }


def microseconds(draw: Callable[..., Tensor], batch: int, repeats: int = 7) -> float:
    """Measure the process time per mask when `batch` masks are drawn at once, the fastest of several runs."""
    seconds = []
    for repeat in range(repeats):
        start = time.process_time()
        draw(range(repeat * batch, (repeat + 1) * batch), GRID, COUNT)
        seconds.append(time.process_time() - start)
    return 1e6 * min(seconds) / batch


def measure(num_masks: int, batches: tuple[int, ...] = (64, 256, 1024)) -> dict[str, dict[str, float]]:
    """Measure all columns of the table."""
    return {"released": RELEASED} | {
        name: mask_statistics(draw, num_masks)
        | {f"{MICROSECONDS}, {batch} at once": microseconds(draw, batch) for batch in batches}
        for name, draw in DRAW.items()
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Format the table as Markdown."""
    rows = list(columns["block"])
    lines = ["| 105 of 16 x 16 patches | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [_cell(row, column.get(row)) for column in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: str, value: float | None) -> str:
    if value is None:
        return ""
    if row.startswith(("share", "corner", "centre")):
        return f"{value:.1%}"
    return f"{value:.1f}" if row.startswith(MICROSECONDS) else f"{value:g}" if value == round(value) else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--masks", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    columns = measure(options.masks)
    report(columns, table(columns), options.out)


if __name__ == "__main__":
    main()
