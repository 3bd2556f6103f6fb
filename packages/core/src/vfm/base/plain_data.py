"""Plain data, as in YAML and JSON."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def map_items(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the values of a mapping, or to the items of a list or tuple. Other values are returned."""
    if isinstance(value, Mapping):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(function, value))
    return value


def keep_keys(mapping: Mapping[K, V], keys: Container[K]) -> dict[K, V]:
    """Copy a mapping with only some of its keys."""
    return {key: value for key, value in mapping.items() if key in keys}


def drop_keys(mapping: Mapping[K, V], keys: Container[K]) -> dict[K, V]:
    """Copy a mapping without some of its keys."""
    return {key: value for key, value in mapping.items() if key not in keys}


def drop_none(mapping: Mapping[K, V | None]) -> dict[K, V]:
    """Copy a mapping without the keys whose value is None."""
    return {key: value for key, value in mapping.items() if value is not None}
