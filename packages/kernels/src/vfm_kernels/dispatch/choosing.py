"""The choice of an implementation from measured times at other sizes.

Between measured sizes, times are interpolated. One of our kernels must win by more than the noise. Far from all
measured sizes nothing is chosen, so that a table with few rows costs little, and an empty one nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = ("ours", "triton_short", "triton_stream")
COMPILED = "torch.compile"  # the plain form compiled by inductor, which eager calls cannot choose
MARGIN = 1.03  # two runs on one idle card must not choose differently
TILE = 16  # tokens: a measurement at 257 tokens holds for 257 to 272, which need as many tiles
LENGTHS_REACH = 1.3  # a length may be shorter or longer than all measured ones by this factor
ROWS_REACH = 2.0  # rows may be fewer than all measured ones by this factor; more rows keep a card as busy

Times = Mapping[str, Sequence[float]]  # implementation -> median, 20th and 80th percentile in milliseconds


class Size(NamedTuple):
    """The size and kind of a call, for which an implementation is chosen.

    Attributes:
        op: Name of the op.
        rows: Batch x heads for attention, rows of the first input for other ops.
        length: Tokens of the longest sequence for attention, 0 for other ops.
        width: Channels of a head for attention, of a row for other ops.
        dtype: Dtype of the first input, such as `bfloat16`.
        backward: Whether gradients will be needed, so that both directions count.
        compiled: Whether the plain form is compiled by inductor.
        kind: Words for the kind of attention: `causal`, `varlen`, `rope`.
    """

    op: str
    rows: int
    length: int
    width: int
    dtype: str
    backward: bool = False
    compiled: bool = False
    kind: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Times of the implementations of an op at one size, in one direction.

    Attributes:
        op: See `Size`.
        direction: `forward` or `backward`.
        rows: See `Size`.
        length: See `Size`.
        width: See `Size`.
        dtype: See `Size`.
        card: Name of the card.
        versions: Versions of torch and triton.
        times: Median, 20th and 80th percentile in milliseconds of each implementation.
        kind: See `Size`.
    """

    op: str
    direction: str
    rows: int
    length: int
    width: int
    dtype: str
    card: str
    versions: str
    times: dict[str, list[float]]
    kind: list[str] = field(default_factory=list)


class Choice(NamedTuple):
    """The chosen implementation of an op.

    Attributes:
        name: Name of the implementation.
        saved: Milliseconds saved for each call over the best other implementation. 0 for a library.
    """

    name: str
    saved: float


def choose_by_times(table: Iterable[Measurement], size: Size) -> Choice | None:
    """Choose the fastest implementation of an op from measured times.

    Args:
        table: Measurements of one card.
        size: Size and kind of the call.

    Returns:
        The choice. None without a measurement of about this size.
    """
    cells = _cells(table, size)
    by_length = {}
    for length in _around(set(cells), size.length):
        by_rows = cells[length]
        near = _bracket(set(by_rows), size.rows, ROWS_REACH, float("inf"))
        if not near:
            return None
        by_length[length] = _between({rows: by_rows[rows] for rows in near}, size.rows)
    if not by_length:
        return None
    return winner(_between(by_length, size.length), size.compiled)


def winner(times: Times, compiled: bool = False) -> Choice:
    """Choose among the measured implementations of an op.

    One of our kernels must win by `MARGIN` and by more than the noise. Otherwise the library is taken.

    Args:
        times: Times of each implementation, see `Measurement`.
        compiled: Whether the plain form is compiled by inductor.
    """
    library = _median_of(times, _libraries(times, compiled))
    ours = [name for name in times if name in OURS]
    if not ours:
        return Choice(library, 0.0)
    best = _median_of(times, ours)
    (median, _, high), (other, other_low, _) = times[best], times[library]
    # The second condition compares the slow runs of ours with the fast runs of the library.
    wins = median * MARGIN <= other and high <= other_low
    if wins:
        return Choice(best, round(other - median, 4))
    return Choice(library, 0.0)


def _cells(table: Iterable[Measurement], size: Size) -> dict[int, dict[int, Times]]:
    """Collect the times of the passes that are needed, by length and rows."""
    wanted = ("forward", "backward") if size.backward else ("forward",)
    parts: dict[tuple[int, int], dict[str, Times]] = {}
    for row in table:
        if size.length:
            same_width = row.width == size.width
        else:
            same_width = _bucket(row.width) == _bucket(size.width)
        same = (row.op, row.dtype, tuple(row.kind)) == (size.op, size.dtype, size.kind)
        if same and same_width and row.direction in wanted:
            parts.setdefault((row.rows, row.length), {})[row.direction] = row.times
    cells: dict[int, dict[int, Times]] = {}
    for (rows, length), directions in parts.items():
        if len(directions) < len(wanted):
            continue
        # An implementation counts if it was measured in all directions.
        names = set.intersection(*map(set, directions.values()))
        sums = {}
        for name in sorted(names):
            # Percentiles are added as the medians are, which overstates the spread: a choice stays on the safe side.
            measured = [times[name] for times in directions.values()]
            sums[name] = list(map(sum, zip(*measured, strict=True)))
        if _libraries(sums, size.compiled):
            cells.setdefault(length, {})[rows] = sums
    return cells


def _around(lengths: set[int], wanted: int) -> list[int]:
    """List the measured lengths that can stand for `wanted`.

    A length with the same number of tiles stands alone. Otherwise the next shorter and the next longer length are used.
    """
    same = [length for length in lengths if -(-length // TILE) == -(-wanted // TILE)]
    if same:
        return [min(same, key=lambda length: abs(length - wanted))]
    return _bracket(lengths, wanted, LENGTHS_REACH, LENGTHS_REACH)


def _bracket(measured: set[int], wanted: int, fewer: float, more: float) -> list[int]:
    """List the measured numbers below and above one, the nearer one first.

    Args:
        measured: The numbers.
        wanted: Number that they stand for.
        fewer: Factor by which it may be below all of them.
        more: Factor by which it may be above all of them.
    """
    below = max((number for number in measured if number <= wanted), default=None)
    above = min((number for number in measured if number >= wanted), default=None)
    if below is None:
        if above is not None and above <= fewer * wanted:
            return [above]
        return []
    if above is None:
        if wanted <= more * below:
            return [below]
        return []
    return sorted({below, above}, key=lambda number: max(number, wanted) / min(number, wanted))


def _between(measured: Mapping[int, Times], wanted: int) -> Times:
    """Interpolate the times at one or two numbers (rows or lengths), both logarithmically."""
    if len(measured) == 1:
        return next(iter(measured.values()))
    (low, first), (high, second) = sorted(measured.items())
    share = math.log(wanted / low) / math.log(high / low)
    times = {}
    for name in first:
        # A library may have no time at one of the two, for example where it does not take so many tokens.
        if name in second:
            times[name] = _weighted(first[name], second[name], share)
    return times


def _weighted(first: Sequence[float], second: Sequence[float], share: float) -> list[float]:
    # Geometric, since times are powers of the size: a line in the logarithms of both.
    return [a ** (1 - share) * b**share for a, b in zip(first, second, strict=True)]


def _libraries(times: Times, compiled: bool) -> list[str]:
    return [name for name in times if name not in OURS and (compiled or name != COMPILED)]


def _median_of(times: Times, names: Sequence[str]) -> str:
    return min(names, key=lambda name: times[name][0])


def _bucket(width: int) -> int:
    """Compute the exponent of the power of two that holds a row, as the kernels' blocks do."""
    return max(width - 1, 0).bit_length()
