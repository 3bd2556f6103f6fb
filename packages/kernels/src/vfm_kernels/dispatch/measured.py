"""Measurements that choose an implementation: `auto` takes one of our kernels only where it was measured to win.

The rows are data in `tuning/measured.json`, which `benchmarks/fill_table.py` measures and writes. They hold for their
card and their versions of torch and triton. Without a row, `auto` takes torch's own operations.
"""

import importlib.metadata
import json
from functools import cache
from importlib import resources

import torch

from vfm_kernels.dispatch.choosing import OURS, Choice, Measurement, Size, choose_by_times


@cache
def measurements() -> tuple[Measurement, ...]:
    """Read all rows of the table."""
    text = resources.files("vfm_kernels").joinpath("tuning", "measured.json").read_text()
    return tuple(Measurement(**row) for row in json.loads(text))


@cache
def versions() -> str:
    """Name the versions of torch and triton, for which a measurement holds."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "absent"
    return f"torch {torch.__version__}, triton {triton}"


def rows_for(card: str) -> list[Measurement]:
    """List the rows that were measured on a card with the installed versions."""
    return [row for row in measurements() if (row.card, row.versions) == (card, versions())]


def choice_on(card: str, size: Size) -> Choice | None:
    """Choose the fastest implementation of an op on a card.

    Args:
        card: Name of the card.
        size: Size and kind of the call.

    Returns:
        The choice. None without a measurement of about this size.
    """
    return choose_by_times(rows_for(card), size)


def is_measured_faster(device: torch.device, size: Size) -> bool:
    """Check whether our kernel won on this card at this size."""
    if not measurements():
        return False
    choice = choice_on(torch.cuda.get_device_name(device), size)
    return choice is not None and choice.name in OURS


def gains(op: str, device: torch.device, width: int) -> list[float]:
    """List the times that our kernel saves at the measured sizes where it won.

    A layer is replaced if the list is not empty, and then chooses again in each call.

    Args:
        op: Name of the op in the table.
        device: Device of the layer.
        width: Channels of a head for attention, of a row for other ops.

    Returns:
        Milliseconds saved for each call, one number for each size.
    """
    if not measurements():
        return []
    saved = []
    for row in rows_for(torch.cuda.get_device_name(device)):
        size = Size(op, row.rows, row.length, width, row.dtype, row.direction == "backward", kind=tuple(row.kind))
        choice = choose_by_times([row] if row.direction == "forward" else rows_for(row.card), size)
        if row.op == op and choice is not None and choice.name in OURS:
            saved.append(choice.saved)
    return saved
