"""Measurements that choose an implementation: `auto` takes one of our kernels only where it was measured to win.

The rows are data in `tuning/measured.json`, which `benchmarks/fill_table.py` writes from the results of a GPU. Until a
card of an architecture has been measured, `auto` takes torch's own operations there.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch

OURS = ("ours", "triton_short", "triton_stream")
TILE = 16  # tokens: a measurement at 257 tokens holds for 257 to 272, which need as many tiles


@dataclass(frozen=True)
class Measurement:
    """The fastest implementation of an op at one size, forward and backward together.

    Attributes:
        op: name of the op.
        architecture: architecture of the card, such as `sm_90`.
        width: channels of a head for attention, of a row for other ops.
        fastest: a backend of attention, or `ours` or `torch`.
        fastest_compiled: like `fastest`, where the plain form is compiled by inductor.
        ratio: time of the best other implementation divided by the time of ours.
        card: name of the card.
        versions: versions of torch and triton.
        num_tokens: tokens of a sequence, for attention.
        causal: see `Problem`.
        varlen: see `Problem`.
        rope: see `Problem`.
    """

    op: str
    architecture: str
    width: int
    fastest: str
    fastest_compiled: str
    ratio: float
    card: str
    versions: str
    num_tokens: int = 0
    causal: bool = False
    varlen: bool = False
    rope: bool = False


@cache
def measurements() -> tuple[Measurement, ...]:
    """Read all rows of the table."""
    text = resources.files("vfm_kernels").joinpath("tuning", "measured.json").read_text()
    return tuple(Measurement(**row) for row in json.loads(text))


def architecture_of(capability: tuple[int, int]) -> str:
    """Format the name of an architecture: `sm_90` for (9, 0)."""
    return f"sm_{capability[0]}{capability[1]}"


def is_measured_faster(op: str, device: torch.device, width: int, compiled: bool) -> bool:
    """Check whether our kernel for an op won on this device's architecture at this width, at any length.

    Args:
        op: name of the op.
        device: a CUDA device.
        width: channels of a head for attention, of a row for other ops.
        compiled: whether our kernel must win against a plain form that inductor compiles.
    """
    architecture = architecture_of(torch.cuda.get_device_capability(device))
    for row in measurements():
        if (row.op, row.architecture) != (op, architecture):
            continue
        # Other ops pad a row to a power of two, so their measurements hold for all widths of the same block.
        same_width = row.width == width if op == "attention" else _bucket(row.width) == _bucket(width)
        fastest = row.fastest_compiled if compiled else row.fastest
        if same_width and fastest in OURS:
            return True
    return False


def fastest_attention(
    architecture: str, width: int, num_tokens: int, causal: bool, varlen: bool, rope: bool
) -> str | None:
    """Look up the backend that was measured to be the fastest; None if no row has this size and kind."""
    for row in measurements():
        if (row.op, row.architecture, row.width) != ("attention", architecture, width):
            continue
        same_kind = (row.causal, row.varlen, row.rope) == (causal, varlen, rope)
        if same_kind and -(-row.num_tokens // TILE) == -(-num_tokens // TILE):
            return row.fastest
    return None


def _bucket(width: int) -> int:
    """Compute the exponent of the power of two that holds a row, as the kernels' blocks do."""
    return max(width - 1, 0).bit_length()
