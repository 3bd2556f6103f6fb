"""Time settings of the attention kernels on this GPU: `python packages/kernels/benchmarks/tune.py`.

The checked-in settings of each kernel and head width and the candidates around them are timed; each becomes a row of
`tuning.csv` as soon as it is measured, and a repeated command goes on after the last row. A candidate that fails, or
whose results differ by more than rounding from those of the checked-in settings, is recorded and not timed. Nothing
else is changed: a better row goes into `tuning/` by hand with the limits that the tests check.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src")]

from checking import evaluate, one_line  # noqa: E402
from records import Setting, Table  # noqa: E402
from timing import measure, own_stream  # noqa: E402
from torch import Tensor  # noqa: E402

import vfm_kernels as vk  # noqa: E402
from vfm_kernels.triton import launch  # noqa: E402
from vfm_kernels.triton.attention import forget_settings  # noqa: E402

GRID = {
    "attention_short": {"BLOCK_QUERIES": (64, 128), "num_warps": (4, 8), "num_stages": (1, 2)},
    "attention_stream": {"BLOCK_QUERIES": (64, 128), "BLOCK_KEYS": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    "attention_backward": {"BLOCK": (64, 128), "BLOCK_OTHER": (32, 64), "num_warps": (4, 8), "num_stages": (1, 2)},
}
SIZES = {64: (256, 257, 16), 88: (128, 257, 16)}  # head width -> batch, tokens, heads
UNFINISHED = 75  # exit code: another call is needed
TOLERANCE = 2e-2  # relative, of bf16 sums in another order


def main() -> None:
    """Parse the command line, time the candidates and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT") or HERE / "results")
    parser.add_argument("--dry-run", action="store_true", help="two candidates at a small size, interpreted on a CPU")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, with exit code 75")
    options, started = parser.parse_args(), time.monotonic()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not (options.dry_run and interpreted):
        parser.error("expected a CUDA device; TRITON_INTERPRET=1 and --dry-run run on a CPU")
    device = torch.device("cpu" if interpreted else "cuda")
    own_stream(device)
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table(options.out / "tuning.csv", Setting)
    for kernel, width in itertools.product(GRID, SIZES):
        size = (1, 17, 1) if interpreted else SIZES[width]
        chosen = list(itertools.islice(candidates(kernel, width, device), 2 if options.dry_run else None))
        left = [settings for settings in chosen if (kernel, str(width), _words(settings)) not in table]
        for settings, *measured in timings(kernel, width, size, left, device, 1 if interpreted else options.repeats):
            table.append(Setting(kernel, str(width), _words(settings), *measured))
            print(*table.rows[-1].key, *measured, flush=True)
            if time.monotonic() - started > options.seconds:
                sys.exit(UNFINISHED)


def _words(settings: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def candidates(kernel: str, width: int, device: torch.device) -> Iterator[dict[str, int]]:
    """Yield the checked-in settings first, then every other combination of the grid."""
    checked_in = {**launch.settings(kernel, width, device)}
    yield checked_in
    for values in itertools.product(*GRID[kernel].values()):
        settings = checked_in | dict(zip(GRID[kernel], values, strict=True))
        if settings != checked_in:
            yield settings


def timings(
    kernel: str,
    width: int,
    size: tuple[int, int, int],
    chosen: list[dict[str, int]],
    device: torch.device,
    repeats: int,
) -> Iterator[tuple[dict[str, int], float | None, str]]:
    """Yield settings with the milliseconds of their pass, or why there are none."""
    batch, tokens, heads = size
    qkv = torch.randn(batch, tokens, 3, heads, width, device=device).to(
        torch.float16 if device.type == "cpu" else torch.bfloat16
    )
    backend = "triton_short" if kernel == "attention_short" else "triton_stream"
    backward = kernel == "attention_backward"
    row = launch.table_row(kernel, width, launch.architecture(device))
    before = dict(row)
    try:
        with_checked_in = evaluate(lambda x: vk.attention_packed(x, backend=backend), [qkv]) if chosen else []
        for settings in chosen:
            row.update(settings)
            forget_settings()
            try:
                results = evaluate(lambda x: vk.attention_packed(x, backend=backend), [qkv])
                error = max(
                    ((a - b).float().norm() / b.float().norm()).item()
                    for a, b in zip(results, with_checked_in, strict=True)
                )
                if not error <= TOLERANCE:
                    yield settings, None, f"wrong: relative difference {error:.1e}"
                    continue
                yield settings, round(measure(_pass(qkv, backend, backward), device, max(repeats, 2)).median, 4), ""
            except Exception as failure:  # too much shared memory, for example; the others are still measured
                yield settings, None, one_line(failure)
    finally:
        row.clear()
        row.update(before)
        forget_settings()


def _pass(qkv: Tensor, backend: str, backward: bool):
    leaf = qkv.detach().requires_grad_()
    out = vk.attention_packed(leaf, backend=backend)
    grad = torch.randn_like(out)
    if backward:
        return lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)

    def forward() -> None:
        with torch.no_grad():
            vk.attention_packed(qkv, backend=backend)

    return forward


if __name__ == "__main__":
    main()
