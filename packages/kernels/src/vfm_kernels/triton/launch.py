"""Launch of kernels with settings that are checked in for each architecture.

The settings are a static table, `tuning/sm80.json` and `tuning/sm90.json`: op -> width -> blocks and warps, with the
limits of registers and shared memory that the ahead-of-time tests check. Nothing is tuned at run time, so a run's
results and its time do not depend on what ran before.
"""

import json
from contextlib import nullcontext
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

LIMITS = ("registers", "shared_bytes")  # entries of a row that are limits, not settings

Row = dict[str, int]


def settings(op: str, width: int, device: torch.device) -> Row:
    """Return blocks and warps for an op: the table's first row that is wide enough, or its last."""
    return {name: value for name, value in table_row(op, width, architecture(device)).items() if name not in LIMITS}


@cache
def table_row(op: str, width: int, architecture: str) -> Row:
    """Return the settings with their limits; the result is cached and must not be changed."""
    rows = _table(architecture)[op]
    widths = sorted(map(int, rows))
    return rows[str(next((each for each in widths if each >= width), widths[-1]))]


def architecture(device: torch.device) -> str:
    """Return the name of a device's table: that of its own generation, or the newest."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return "sm80"
    return "sm90"


def persistent_programs(num_rows: int, per_multiprocessor: int, device: torch.device) -> int:
    """Return the number of programs that loop over rows: as many as fit the device, at most one for each row."""
    if device.type == "cuda":
        return min(num_rows, per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count)
    return min(num_rows, per_multiprocessor)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel; an empty grid launches nothing."""
    if 0 in grid:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants)


def block_of(width: int) -> int:
    """Return the smallest power of two that holds a row, as Triton's blocks need."""
    return 1 << max(width - 1, 0).bit_length()


def with_adjacent_columns(rows: Tensor) -> Tensor:
    """Return the rows with adjacent columns, as the kernels need; rows may have any stride."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@cache
def _table(architecture: str) -> dict[str, dict[str, Row]]:
    text = resources.files("vfm_kernels").joinpath("tuning", f"{architecture}.json").read_text()
    table: dict[str, dict[str, Row]] = json.loads(text)
    return table
