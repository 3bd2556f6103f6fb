"""How kernels are launched, one file for each op: with settings checked in for the architecture, where the tensors lie.

The settings are a static table, `tuning/sm80.json` and `tuning/sm90.json`: op -> width -> blocks and warps, beside the
registers and shared memory that the ahead-of-time test holds the compiled kernel to. Nothing is tuned on import.
"""

import json
from contextlib import nullcontext
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

LIMITS = ("registers", "shared_bytes")  # what a row promises, beside what it sets

Row = dict[str, int]


def settings(op: str, width: int, device: torch.device) -> Row:
    """Blocks and warps for an op: the table's first row that is wide enough, or its last."""
    return {name: value for name, value in table_row(op, width, architecture(device)).items() if name not in LIMITS}


@cache
def table_row(op: str, width: int, architecture: str) -> Row:
    """The settings with their limits; not to be changed."""
    rows = _table(architecture)[op]
    widths = sorted(map(int, rows))
    return rows[str(next((each for each in widths if each >= width), widths[-1]))]


def architecture(device: torch.device) -> str:
    """The table that a device reads: its own generation's, or the newest one's."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return "sm80"
    return "sm90"


def persistent_programs(num_rows: int, per_multiprocessor: int, device: torch.device) -> int:
    """Programs for a kernel whose programs walk over rows: as many as the device holds, no more than there are rows."""
    if device.type == "cuda":
        return min(num_rows, per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count)
    return min(num_rows, per_multiprocessor)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel; an empty grid is no work."""
    if 0 in grid:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants)


def block_of(width: int) -> int:
    """The power of two that holds a row: Triton's blocks are no other."""
    return 1 << max(width - 1, 0).bit_length()


def with_adjacent_columns(rows: Tensor) -> Tensor:
    """Rows as a kernel reads them: any distance between rows, none between columns."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@cache
def _table(architecture: str) -> dict[str, dict[str, Row]]:
    text = resources.files("vfm_kernels").joinpath("tuning", f"{architecture}.json").read_text()
    table: dict[str, dict[str, Row]] = json.loads(text)
    return table
