"""Launch of kernels with settings that are checked in for each architecture.

The settings are static tables: op -> width -> blocks and warps, with the limits of registers and shared memory that
the ahead-of-time tests check. `tuning/sm80.json` has all ops; the tables of Hopper and Blackwell have what
differs there. Nothing is tuned at run time, so a run's results and its time do not depend on what ran before.
"""

import json
from contextlib import nullcontext
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

LIMITS = ("registers", "shared_bytes")  # entries of a row that are limits, not settings
# First capability -> table. Ada (8.9) has Ampere's matrix products, as have Blackwell's consumer cards (12.0).
TABLES = {(8, 0): "sm80", (9, 0): "sm90", (10, 0): "sm100", (12, 0): "sm120"}

MOST_COMPILED = 4096  # launches that are kept; a training has some tens

Row = dict[str, int]

# What a launch is known by -> a function that runs the compiled kernel, and the constants that follow the arguments.
_COMPILED: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}


def settings(op: str, width: int, device: torch.device) -> Row:
    """Return blocks and warps for an op: the table's first row that is wide enough, or its last."""
    return {name: value for name, value in table_row(op, width, architecture(device)).items() if name not in LIMITS}


@cache
def table_row(op: str, width: int, architecture: str) -> Row:
    """Return the settings with their limits; the result is cached and must not be changed."""
    rows = _table(architecture)[op]
    widths = sorted(map(int, rows))
    return rows[str(next((each for each in widths if each >= width), widths[-1]))]


@cache
def architecture(device: torch.device) -> str:
    """Return the name of a device's table; Hopper's for the interpreter."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return TABLES[max(first for first in TABLES if first <= capability)]


def persistent_programs(num_rows: int, per_multiprocessor: int, device: torch.device) -> int:
    """Return the number of programs that loop over rows: as many as fit the device, at most one for each row."""
    if device.type == "cuda":
        return min(num_rows, per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count)
    return min(num_rows, per_multiprocessor)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel; an empty grid launches nothing.

    Triton looks a compiled kernel up by what it compiles for, which costs 20 microseconds with 40 arguments. Equal
    numbers, dtypes and constants mean the same kernel if all tensors are aligned to 16 bytes, so it is kept here.
    """
    if 0 in grid:
        return
    addresses, key = 0, [id(kernel), grid, device, *constants.values()]
    for argument in arguments:
        if isinstance(argument, Tensor):
            addresses |= argument.data_ptr()
            key.append(argument.dtype)
        else:
            key.append(argument)
    found = _COMPILED.get(tuple(key)) if addresses % 16 == 0 else None
    with _current(device):
        if found is not None:
            run, values = found
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
    """Return a context in which the device is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def block_of(width: int) -> int:
    """Return the smallest power of two that holds a row, as Triton's blocks need."""
    return 1 << max(width - 1, 0).bit_length()


def with_adjacent_columns(rows: Tensor) -> Tensor:
    """Return the rows with adjacent columns, as the kernels need; rows may have any stride."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@cache
def _table(architecture: str) -> dict[str, dict[str, Row]]:
    folder = resources.files("vfm_kernels").joinpath("tuning")
    of_all, own = (json.loads(folder.joinpath(f"{name}.json").read_text()) for name in ("sm80", architecture))
    table: dict[str, dict[str, Row]] = of_all | own
    return table
