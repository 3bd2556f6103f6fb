"""Values that a user's data store with their samples, such as scores and flags, as columns for filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vfm.data.samples.captions import field_of

KINDS = {bool: pa.bool_(), float: pa.float64(), str: pa.string()}


def values_of_records(records: Iterable[Mapping[str, Any] | None], locations: Sequence[str]) -> pa.Table:
    """Collect the values at some locations of records, one row each, null where a record is broken or has no value."""
    columns: dict[str, list[object]] = {location: [] for location in locations}
    for record in records:
        for location, values in columns.items():
            values.append(field_of(record or {}, location.removeprefix("json.")))
    return pa.table({location: array_of(values) for location, values in columns.items()})


def array_of(values: Sequence[object]) -> pa.Array:
    """Build an array of booleans, numbers (64-bit floats) or texts.

    It has the type of most values. The others are null.
    """
    plain = list(map(_plain, values))
    counts = Counter(map(type, plain))
    del counts[type(None)]
    if not counts:
        return pa.nulls(len(plain))
    kind = max(KINDS, key=lambda each: counts[each])
    return pa.array([value if type(value) is kind else None for value in plain], KINDS[kind])


def _plain(value: object) -> bool | float | str | None:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and value == value:  # not NaN
        return float(value)
    return None


def plain_columns(table: pa.Table, locations: Sequence[str]) -> pa.Table:
    """Select columns, or fields of columns of structs, as booleans, integers, floats, texts or times where they are."""
    return pa.table({location: _plain_column(table, *location.split(".")) for location in locations})


def _plain_column(table: pa.Table, root: str, *path: str) -> pa.ChunkedArray:
    column = table[root]
    for name in path:
        is_struct = pa.types.is_struct(column.type) and column.type.get_field_index(name) >= 0
        if not is_struct:
            return pa.chunked_array([pa.nulls(len(column))])
        column = pc.struct_field(column, name)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        column = pc.cast(column, pa.float64())
    if pa.types.is_floating(column.type):  # NaN is missing, as null is
        column = pc.if_else(pc.is_nan(column), None, column)
    return column
