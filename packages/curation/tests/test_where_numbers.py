"""Conditions of `where` on columns of every numeric type, against Python's comparison of the same values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from vfm_curation.filters.where.evaluation import bound_of, masks, values_of
from vfm_curation.filters.where.expression import Expression

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]
EDGES = sorted(
    {
        sign * (2**bits + step)
        for bits in (0, 7, 8, 15, 24, 31, 53, 63, 64, 70)
        for step in (-1, 0, 1)
        for sign in (-1, 1)
    }
)
NUMBERS: st.SearchStrategy[float] = st.one_of(
    st.sampled_from(EDGES),
    st.integers(-300, 300),
    st.sampled_from([0.0, 0.5, -0.5, 127.5, 255.5, -128.5, 2.0**53, 2.0**64, 1e30, 1e300, 6e4, 7e4]),
    st.floats(-400, 400),
)
OPERATORS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


@st.composite
def columns(draw: Any) -> pa.Array:
    """Draw a column of some numeric type with its extreme values, others and a missing one."""
    kind = draw(st.sampled_from([*INTEGERS, *FLOATS]))
    if kind in INTEGERS:
        limits = np.iinfo(kind)
        smallest, largest = int(limits.min), int(limits.max)
        near: Any = st.sampled_from([edge for edge in EDGES if smallest <= edge <= largest])
        values: Any = st.one_of(near, st.integers(smallest, largest))
        extremes = [smallest, largest]
    else:
        values = st.floats(width=int(kind[5:]), allow_nan=True)
        extremes = [-0.0, math.inf, -math.inf, math.nan, float(np.finfo(kind).max)]
    return pa.array([*extremes, *draw(st.lists(values, max_size=6)), None], pa.type_for_alias(kind))


def rounded(number: float, kind: pa.DataType) -> float:
    """Round a number to a type of floats, as NumPy does, unless that would make it infinite."""
    if pa.types.is_integer(kind):
        return number
    with np.errstate(over="ignore"):
        value = float(kind.to_pandas_dtype()(number))
    return value if math.isfinite(value) else number


def of(text: str, column: pa.Array) -> list[bool | None]:
    (mask,) = masks(Expression(text), pa.table({"x": column}), len(column), {})
    result: list[bool | None] = mask.to_pylist()
    return result


@settings(max_examples=400, deadline=None)
@given(column=columns(), op=OPERATORS, number=NUMBERS, flipped=st.booleans())
def test_comparisons_with_numbers_equal_pythons(column: pa.Array, op: str, number: float, flipped: bool) -> None:
    text = f"{number!r} {op} x" if flipped else f"x {op} {number!r}"
    plain = text.replace(repr(number), "number")
    value = rounded(number, column.type)
    expected = [None if x is None else eval(plain, {"x": x, "number": value}) for x in column.to_pylist()]
    assert of(text, column) == expected


@settings(max_examples=400, deadline=None)
@given(column=columns(), numbers=st.lists(NUMBERS, min_size=1, max_size=4), word=st.sampled_from(["in", "not in"]))
def test_membership_equals_pythons(column: pa.Array, numbers: list[float], word: str) -> None:
    options = [rounded(number, column.type) for number in numbers]
    expected = [
        None if x is None else eval(f"x {word} options", {"x": x, "options": options}) for x in column.to_pylist()
    ]
    assert of(f"x {word} {numbers!r}", column) == expected


@settings(max_examples=200, deadline=None)
@given(left=columns(), right=columns(), op=OPERATORS)
def test_comparisons_of_columns_equal_pythons_or_numpys(left: pa.Array, right: pa.Array, op: str) -> None:
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    (mask,) = masks(Expression(f"x {op} y"), pa.table({"x": left, "y": right}), size, {})
    # Beside floats, integers are rounded to 64 bits.
    inexact = pa.types.is_floating(left.type) or pa.types.is_floating(right.type)
    expected = []
    for x, y in zip(left.to_pylist(), right.to_pylist(), strict=True):
        if x is None or y is None:
            expected.append(None)
        else:
            expected.append(eval(f"x {op} y", {"x": float(x) if inexact else x, "y": float(y) if inexact else y}))
    assert mask.to_pylist() == expected


def test_a_number_outside_a_columns_range_is_in_no_row() -> None:
    column = pa.array([0, 1, 255, None], pa.uint8())
    assert of("x in [1, 300]", column) == [False, True, False, None]
    assert of("x not in [-1, 0.5]", column) == [True, True, True, None]
    assert of("x > 300", column) == of("x < -0.5", column) == [False, False, False, None]
    assert of("~(x == 300 | x < -1e300 | x > 1e999)", column) == [True, True, True, None]
    assert of("x in [True]", column) == [False, True, False, None]
    with pytest.raises(ValueError, match=r"x in \[1, 'a'\]: expected numbers in the list, .* got 'a'"):
        of("x in [1, 'a']", column)


def test_floats_of_16_bits_are_computed_and_compared_as_numpys() -> None:
    values = np.array([0.28, 0.27, 0.29, 0], np.float16)
    for text in ("x > 0.28", "x == 0.28", "x + x > 0.55", "max(x, x) < 0.28", "abs(-x) >= 0.27", "x in [0.29]"):
        plain = text.replace("max(x, x)", "x").replace("x in [0.29]", "x == 0.29")
        assert of(text, pa.array(values)) == eval(plain, {"x": values, "abs": np.abs}).tolist(), text
    assert of("x", pa.array(values)) == [True, True, True, False]
    expression, table = Expression("x >= q50 & top(x, 0.3)"), pa.table({"x": values})
    bounds = {name: bound_of(cut, values_of(cut, table)) for name, cut in expression.cuts.items()}
    assert [mask.to_pylist() for mask in masks(expression, table, 4, bounds)] == [
        (values >= np.quantile(values.astype(float), 0.5)).tolist(),
        [True, False, True, False],
    ]


def test_numbers_that_no_type_has_are_compared_too() -> None:
    lowest = pa.array([-(2**63), 0])
    below = -(2**63) - 1  # as a float it would equal the lowest integer of 64 bits
    assert of(f"x <= {below}", lowest) == of(f"{below} == x", lowest) == [False, False]
    assert of(f"{below} < x", lowest) == of(f"x != {below}", lowest) == [True, True]
    assert of(f"x < {10**30}", pa.array([2**64 - 1], pa.uint64())) == [True]
    with pytest.raises(ValueError, match="int too large"):
        of(f"x < {10**400}", pa.array([1]))
