"""Comparisons of columns with numbers and with each other, exact for each width of integers, and NumPy's for floats.

Arrow casts both sides to a common type, and fails if a value is outside its range. Here a number outside the range of a
column is smaller or larger than all its values, and a fraction lies between two integers.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def compared(op: type[ast.cmpop], left: Any, right: Any) -> Any:
    """Compare two columns, or a column with a scalar. A missing value leaves the result missing."""
    if is_number(left.type) and is_number(right.type):
        if isinstance(right, pa.Scalar) and right.is_valid:
            return with_number(op, left, right.as_py())
        if isinstance(left, pa.Scalar) and left.is_valid:
            return with_number(mirrored(op), right, left.as_py())
        left, right = _of_one_type(left, right)
    return COMPARISONS[op](left, right)


def mirrored(op: type[ast.cmpop]) -> type[ast.cmpop]:
    """Find the comparison of b with a that equals one of a with b."""
    return MIRRORED.get(op, op)


def is_in(values: Any, options: Sequence[Any]) -> Any:
    """Check whether each value is one of the options. A number that the column's type does not have is in no row.

    Raises:
        TypeError: If the column has numbers and an option is a text.
    """
    kind = values.type
    if pa.types.is_decimal(kind):
        values = pc.cast(values, pa.float64())
    elif pa.types.is_boolean(kind):
        values = pc.cast(values, pa.uint8())
    if not is_number(values.type):
        return _unless_missing(values, pc.is_in(values, pc.cast(pa.array(options), kind)))
    present = []
    for option in options:
        if isinstance(option, str):
            raise TypeError(f"expected numbers in the list, since the column has {kind}, got {option!r}")
        below, above = _around(option, values.type)
        if below == above:
            present.append(below)
    if 0 in present and pa.types.is_floating(values.type):
        present += [0.0, -0.0]  # Arrow looks values up by their bits
    found = pa.array(present, values.type)
    return _unless_missing(values, pc.is_in(as_float32(values), as_float32(found)))


def is_number(kind: pa.DataType) -> bool:
    """Check whether a type has integers or floats."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def as_float32(values: Any) -> Any:
    """Widen floats of 16 bits, for which Arrow has no arithmetic. Other values are unchanged."""
    return pc.cast(values, pa.float32()) if pa.types.is_float16(values.type) else values


def with_number(op: type[ast.cmpop], values: Any, number: float) -> Any:
    """Compare a column with a number that need not be a value of its type."""
    if math.isnan(number):
        return _unless_missing(values, op is ast.NotEq)
    below, above = _around(number, values.type)
    if op in (ast.Eq, ast.NotEq) and below != above:
        return _unless_missing(values, op is ast.NotEq)
    bound = above if op in (ast.Lt, ast.GtE) else below
    if bound is None:  # all values are on one side
        return _unless_missing(values, op in (ast.Lt, ast.Gt))
    return COMPARISONS[op](as_float32(values), as_float32(pa.scalar(bound, values.type)))


def _around(number: float, kind: pa.DataType) -> tuple[Any, Any]:
    """Find the values of a type next to a number: the largest that is not above it, and the smallest not below it.

    They are equal if the type has the number. Floats are rounded to the nearest value, as NumPy does. None: the type
    has no such value.
    """
    dtype = kind.to_pandas_dtype()
    if pa.types.is_integer(kind):
        limits = np.iinfo(dtype)
        smallest, largest = int(limits.min), int(limits.max)
        if number > largest:
            return largest, None
        if number < smallest:
            return None, smallest
        return math.floor(number), math.ceil(number)
    with np.errstate(over="ignore"):
        rounded = dtype(number)
    if np.isinf(rounded) and not math.isinf(number):
        largest = np.finfo(dtype).max
        return (largest, rounded) if number > 0 else (rounded, -largest)
    return rounded, rounded


def _of_one_type(left: Any, right: Any) -> tuple[Any, Any]:
    """Cast two columns of numbers to a type in which they can be compared."""
    kinds = left.type, right.type
    if any(map(pa.types.is_floating, kinds)):
        # Integers above 2 ** 53 are rounded, as NumPy does.
        return tuple(pc.cast(side, pa.float64(), safe=False) for side in (left, right))
    if pa.uint64() in kinds and any(map(pa.types.is_signed_integer, kinds)):
        decimal = pa.decimal128(20)
        return pc.cast(left, decimal), pc.cast(right, decimal)
    return left, right


def _unless_missing(values: Any, result: Any) -> Any:
    """Set the result to null where a value is missing."""
    return pc.if_else(pc.is_valid(values), result, pa.scalar(None, pa.bool_()))
