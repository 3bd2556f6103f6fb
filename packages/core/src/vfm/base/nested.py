"""Nested plain data, as in YAML and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def map_items(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the values of a mapping, or to the items of a list or tuple. Other values are returned."""
    if isinstance(value, Mapping):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(function, value))
    return value
