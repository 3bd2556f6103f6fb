"""Launch of kernels with settings that are checked in for each architecture.

The settings are static tables: op -> width -> blocks and warps, with the limits of registers and shared memory that
the ahead-of-time tests check. `tuning/sm80.json` has all ops. The tables of Hopper and Blackwell have only the
differences. Nothing is tuned at run time, so a run's results and its time do not depend on what ran before.
"""

import json
from contextlib import nullcontext
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from vfm_kernels.launches import RECORDS

LIMITS = ("registers", "shared_bytes")  # entries of a row that are limits, not settings
# First capability -> table. Ada (8.9) and Blackwell's consumer cards (12.0) have Ampere's matrix products.
TABLES = {(8, 0): "sm80", (9, 0): "sm90", (10, 0): "sm100", (12, 0): "sm120"}

MOST_COMPILED = 4096  # kept launches; a training run has some tens

Row = dict[str, int]

# Key of a launch -> a function that runs the compiled kernel, and the constants that follow the arguments.
_COMPILED: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}


def settings(op: str, width: int, device: torch.device) -> Row:
    """Choose the blocks and warps of an op.

    They are in the table's first row that is wide enough, or in its last row.

    Args:
        op: Name of the op.
        width: Channels of a row.
        device: Device of the tensors.
    """
    row = table_row(op, width, architecture(device))
    return {name: value for name, value in row.items() if name not in LIMITS}


@cache
def table_row(op: str, width: int, architecture: str) -> Row:
    """Look up the settings with their limits. The result is cached and must not be changed."""
    rows = _table(architecture)[op]
    widths = sorted(map(int, rows))
    wide_enough = [row_width for row_width in widths if row_width >= width]
    return rows[str(wide_enough[0] if wide_enough else widths[-1])]


@cache
def architecture(device: torch.device) -> str:
    """Look up the name of a device's table. The interpreter uses Hopper's."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    # A newer card takes the table of the newest architecture before it.
    return TABLES[max(first for first in TABLES if first <= capability)]


def persistent_programs(num_rows: int, per_multiprocessor: int, device: torch.device) -> int:
    """Compute the number of programs that loop over rows.

    Args:
        num_rows: Number of rows. There are no more programs than rows.
        per_multiprocessor: Programs that fit one multiprocessor.
        device: Device of the tensors.
    """
    if device.type == "cuda":
        return min(num_rows, per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count)
    return min(num_rows, per_multiprocessor)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel. An empty grid launches nothing.

    Triton's own lookup of a compiled kernel costs 20 microseconds with 40 arguments. If all tensors are aligned to 16
    bytes, equal numbers, dtypes and constants mean the same kernel. It is therefore cached here.

    Args:
        kernel: Triton kernel.
        grid: Number of programs in each dimension.
        device: Device of the tensors.
        *arguments: Tensors and numbers.
        **constants: Arguments that are compiled into the kernel.
    """
    if 0 in grid:
        return
    for record in RECORDS:
        record.append(kernel.__name__)
    # The bitwise or of all addresses is a multiple of 16 only if each is, for which Triton compiled the kernel.
    addresses, key = 0, [id(kernel), grid, device, *constants.values()]
    for argument in arguments:
        if isinstance(argument, Tensor):
            addresses |= argument.data_ptr()
            key.append(argument.dtype)
        else:
            key.append(argument)
    cached = _COMPILED.get(tuple(key)) if addresses % 16 == 0 else None
    with _current(device):
        if cached is not None:
            run, values = cached
            run(*arguments, *values)
            return
        compiled = kernel[grid](*arguments, **constants)
    if compiled is None or addresses % 16:  # interpreted, or compiled for other addresses
        return
    if len(_COMPILED) == MOST_COMPILED:  # sizes that never come again must not fill the memory
        _COMPILED.clear()
    values = [constants[name] for name in kernel.arg_names if name in constants]
    _COMPILED[tuple(key)] = compiled[(*grid, 1, 1)[:3]], values


def _current(device: torch.device) -> Any:
    """Create a context in which the device is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def block_of(width: int) -> int:
    """Compute the smallest power of two that holds a row, as Triton's blocks need."""
    return 1 << max(width - 1, 0).bit_length()


def with_adjacent_columns(rows: Tensor) -> Tensor:
    """Make the columns of rows adjacent, as the kernels need. Rows may have any stride."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@cache
def _table(architecture: str) -> dict[str, dict[str, Row]]:
    folder = resources.files("vfm_kernels").joinpath("tuning")
    shared = json.loads(folder.joinpath("sm80.json").read_text())
    overrides = json.loads(folder.joinpath(f"{architecture}.json").read_text())
    table: dict[str, dict[str, Row]] = shared | overrides
    return table
