"""Evaluation of conditions on columns of pyarrow. Missing values follow Kleene's logic."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm_curation.filters.where.comparison import as_float32, compared, is_in, is_number, mirrored, with_number
from vfm_curation.filters.where.expression import (
    SHARES,
    Cut,
    Expression,
    constant_of,
    pairs_of,
    quantile_of,
    share_of,
)

Columns = Mapping[str, Any]
"""Arrays of pyarrow, all of one length, by the name of the column."""

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add_checked,
    ast.Sub: pc.subtract_checked,
    ast.Mult: pc.multiply_checked,
    ast.Div: lambda left, right: _quotient(pc.cast(left, pa.float64()), pc.cast(right, pa.float64())),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda number: pc.abs_checked(_wide(number)),
    "contains": lambda text, part: pc.match_substring(text, part.as_py()),
    "is_null": pc.is_null,
    "len": pc.utf8_length,
    "lower": pc.utf8_lower,
    "matches": lambda text, pattern: pc.match_substring_regex(text, pattern.as_py()),  # RE2: in linear time
    "max": lambda *values: pc.max_element_wise(*map(as_float32, values), skip_nulls=False),
    "min": lambda *values: pc.min_element_wise(*map(as_float32, values), skip_nulls=False),
    "startswith": lambda text, start: pc.starts_with(text, start.as_py()),
}


def masks(expression: Expression, columns: Columns, num_rows: int, bounds: Mapping[str, float]) -> list[Any]:
    """Evaluate each condition of an expression.

    Args:
        expression: The conditions.
        columns: The columns by name.
        num_rows: Their length.
        bounds: Value of each cut by its name.

    Returns:
        An array of booleans for each condition, null where a missing value leaves it open.

    Raises:
        ValueError: If values have the wrong type.
    """
    evaluation = Evaluation(columns, bounds)
    results = []
    for part in expression.parts:
        mask = evaluation.condition(part)
        results.append(pa.array([mask.as_py()] * num_rows, pa.bool_()) if isinstance(mask, pa.Scalar) else mask)
    return results


def values_of(cut: Cut, columns: Columns) -> NDArray[np.float64]:
    """Evaluate the expression of a cut, without missing values.

    Raises:
        ValueError: If its values are not numbers.
    """
    values = Evaluation(columns, {}).value(cut.node)
    if not (is_number(values.type) or pa.types.is_null(values.type)):
        raise ValueError(f"{ast.unparse(cut.node)}: expected numbers, got {values.type}")
    numbers: NDArray[np.float64] = pc.cast(pc.drop_null(values), pa.float64()).to_numpy()
    return numbers


def bound_of(cut: Cut, values: NDArray[np.float64]) -> float:
    """Compute the bound of a cut from all values of its expression.

    A quantile is interpolated, as `numpy.quantile` does. `top` takes DataComp's rule: the bound is the value after the
    first int(share * N) of the sorted ones, and passes too, as do its ties. Without values there is none (NaN).
    """
    if not len(values):
        return np.nan
    if cut.rule == "quantile":
        return float(np.quantile(values, cut.share))
    place = min(int(len(values) * cut.share), len(values) - 1)
    if cut.rule == "bottom":
        return float(np.partition(values, place)[place])
    opposite = -values
    opposite.partition(place)  # in place: `np.partition` copies
    return float(-opposite[place])


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a checked tree on columns. Missing values follow Kleene's logic."""

    columns: Columns
    bounds: Mapping[str, float]

    def condition(self, node: ast.expr) -> Any:
        """Evaluate to booleans. Numbers count as true unless they are 0."""
        value = self.value(node)
        if pa.types.is_boolean(value.type):
            return value
        if is_number(value.type):
            return compared(ast.NotEq, value, pa.scalar(0))
        if pa.types.is_null(value.type):
            return pc.cast(value, pa.bool_())
        raise ValueError(f"{ast.unparse(node)}: expected a condition, got {value.type}")

    def value(self, node: ast.expr) -> Any:
        """Evaluate to values of any type."""
        try:
            return self._value(node)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, TypeError, OverflowError) as error:
            raise ValueError(f"{ast.unparse(node)}: {str(error).splitlines()[0]}") from None

    def _value(self, node: ast.expr) -> Any:
        constant = constant_of(node)
        if constant is not None:
            return _scalar(constant)
        match node:
            case ast.Name() | ast.Attribute():
                return self.columns[ast.unparse(node)]
            case ast.UnaryOp(op=ast.Not()):
                return pc.invert(self.condition(node.operand))
            case ast.UnaryOp():
                return pc.negate_checked(_wide(self.value(node.operand)))
            case ast.BinOp():
                sides = [_wide(self.value(side)) for side in (node.left, node.right)]
                return _applied(ARITHMETIC[type(node.op)], sides)
            case ast.BoolOp():
                join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
                return reduce(join, map(self.condition, node.values))
            case ast.Compare():
                return reduce(pc.and_kleene, (self._comparison(*pair) for pair in pairs_of(node)))
            case ast.Call(func=ast.Name(id=name)) if name in SHARES:
                cut = share_of(node)
                op = ast.GtE if name == "top" else ast.LtE
                return _applied(partial(compared, op), [self.value(cut.node), pa.scalar(self.bounds[cut.name])])
            case ast.Call(func=ast.Name(id=name)):
                values = [self.value(argument) for argument in node.args]
                return pc.is_null(*values) if name == "is_null" else _applied(FUNCTIONS[name], values)
        raise ValueError(f"{ast.unparse(node)}: expected a value")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.In | ast.NotIn):
            assert isinstance(right, ast.Tuple | ast.List)
            value = self.value(left)
            if pa.types.is_null(value.type):
                return pc.cast(value, pa.bool_())
            inside = is_in(value, list(map(constant_of, right.elts)))
            return pc.invert(inside) if isinstance(op, ast.NotIn) else inside
        compare = type(op)
        if constant_of(left) is not None:
            left, right, compare = right, left, mirrored(compare)
        values = [self._side(left, right), self._side(right, left)]
        number = constant_of(right)
        if isinstance(number, int | float) and is_number(values[0].type):
            return with_number(compare, values[0], number)  # any integer, also beyond Arrow's types
        return pc.cast(_applied(partial(compared, compare), values), pa.bool_())

    def _side(self, side: ast.expr, other: ast.expr) -> Any:
        """Evaluate a side of a comparison, which may be a quantile of the other side."""
        cut = quantile_of(side, other)
        return pa.scalar(self.bounds[cut.name]) if cut else self.value(side)


def _applied(function: Callable[..., Any], values: Sequence[Any]) -> Any:
    """Apply a function to values. If one is a column of type null, which has no value, so is the result."""
    for value in values:
        if pa.types.is_null(value.type):
            return value
    return function(*values)


def _scalar(constant: Any) -> pa.Scalar:
    """Convert a constant. Integers may be larger than 64 bits with a sign."""
    if not isinstance(constant, int) or -(2**63) <= constant < 2**63:
        return pa.scalar(constant)
    return pa.scalar(constant, pa.uint64()) if 0 < constant < 2**64 else pa.scalar(float(constant))


def _wide(value: Any) -> Any:
    """Widen integers to 64 bits before arithmetic. `width * height` of 32 bits would overflow."""
    return pc.cast(value, pa.int64()) if pa.types.is_integer(value.type) else as_float32(value)


def _quotient(left: Any, right: Any) -> Any:
    """Divide. 0 / 0 is missing, since NaN is in columns too."""
    quotient = pc.divide(left, right)
    undefined = pc.is_nan(quotient)
    return pc.if_else(undefined, None, quotient) if pc.any(undefined).as_py() else quotient
