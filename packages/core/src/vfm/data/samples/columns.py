"""Numbers and names of samples that losses and reports use, such as a weight or a group."""

from __future__ import annotations

import math
from collections.abc import Callable

from vfm.base import UserError
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.spec import DatasetSpec


def column_name(location: str) -> str:
    """Name the column at a location: the last part of `json.meta.weight`."""
    return location.rsplit(".", 1)[-1]


def check_names(locations: list[str]) -> list[str]:
    """Check that the columns at some locations have distinct names, by which losses and reports know them.

    Raises:
        ValueError: If two have the same name.
    """
    names = list(map(column_name, locations))
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"expected distinct names, got {name!r} {names.count(name)} times in {', '.join(locations)}"
            )
    return locations


def read_columns(spec: DatasetSpec, value_at: Callable[[str], object], where: str) -> dict[str, str | float]:
    """Read the columns of a sample by name.

    Args:
        spec: Names the locations of the columns.
        value_at: Reads the value at a location.
        where: Address of the sample for errors.

    Raises:
        BadSample: If a value is missing, or neither a text nor a number.
    """
    values: dict[str, str | float] = {}
    for location in spec.columns:
        value = value_at(location)
        is_missing = not isinstance(value, str | int | float) or value == "" or value != value  # the last: NaN
        if is_missing:
            raise BadSample("missing_value", f"{where} ({location})")
        values[column_name(location)] = value  # type: ignore[assignment]
    return values


def require_column(spec: DatasetSpec, column: str, where: str) -> None:
    """Check that samples have a column.

    Args:
        spec: Names the columns.
        column: Name of the column.
        where: Field and dataset, for the error.

    Raises:
        UserError: If they have not. The error lists the columns.
    """
    columns = list(map(column_name, spec.columns))
    if column not in columns:
        raise UserError(
            f"{where}: no column {column!r}; `columns` of the data's stage names {', '.join(columns) or 'none'}"
        )


def weight_of(sample: Sample, column: str) -> float:
    """Read a sample's weight in a loss. Tables of text have numbers as text.

    Raises:
        BadSample: If it is not a finite number of at least 0.
    """
    try:
        weight = float(sample.columns[column])
    except (KeyError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise BadSample("missing_value", f"{sample.key} ({column})")
    return weight
