"""Captions filled in from columns: `a photo of a {color} {name}` in place of a location in `texts`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, product
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

MAX_CAPTIONS = 100  # captions of a sample, from all combinations of values in lists


def is_template(location: str) -> bool:
    """Check whether a location is a template. Templates have braces."""
    return "{" in location or "}" in location


def check_template(location: str) -> str:
    """Check that a location is plain, or a template that can be filled in.

    Raises:
        ValueError: If braces do not match, or contain anything but the name of a column.
    """
    if is_template(location):
        expected = f"expected columns in braces, as in 'a photo of a {{name}}', got {location!r}"
        try:
            parts = list(Formatter().parse(location))
        except ValueError as error:
            raise ValueError(f"{expected}: {error}") from None
        names = [name for _, name, _, _ in parts if name is not None]
        if not names or not all(names) or any(form or conversion for _, _, form, conversion in parts):
            raise ValueError(expected)
    return location


def locations_in(location: str) -> list[str]:
    """List the locations of values that a template needs. A plain location needs itself."""
    if not is_template(location):
        return [location]
    return [name for _, name, _, _ in Formatter().parse(location) if name]


def columns_of(locations: Iterable[str]) -> list[str]:
    """List the columns, or the members of a sample, that locations and templates read."""
    columns: dict[str, None] = {}
    for location in locations:
        for name in locations_in(location):
            columns[name.partition(".")[0]] = None
    return list(columns)


def filled(template: str, value_at: Callable[[str], object], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Fill in a template. A list has a caption for each of its values. Without a value there is no caption.

    Args:
        template: Text with locations in braces.
        value_at: Reads the value at a location: a text, a number, a list, or None.
        names: Names of the numbers at a location, such as the classes of a label.
    """
    parts: list[list[str]] = []
    for text, location, _, _ in Formatter().parse(template):
        parts.append([text])
        if location:
            parts.append(_words(value_at(location), names.get(location, ())))
    filled = islice(product(*parts), MAX_CAPTIONS)
    return list(map("".join, filled))


def _words(value: object, names: Sequence[str]) -> list[str]:
    """Convert a value, or the values in a list, to text."""
    values = value if isinstance(value, list) else [value]
    words = [_word(item, names) for item in values if isinstance(item, str | int | float) and item == item]  # not NaN
    return list(filter(None, words))


def _word(value: str | float, names: Sequence[str]) -> str:
    text = str(value).strip()
    if text.isdecimal() and names:
        return names[int(text)] if int(text) < len(names) else ""
    return text


def _in_english(texts: Any) -> Any:
    """Read a location alone as the location of English captions."""
    return {"en": texts} if isinstance(texts, str) else texts


Texts = Annotated[
    dict[str, Annotated[str, AfterValidator(check_template)]],
    BeforeValidator(_in_english, json_schema_input_type=dict[str, str] | str),
]
"""Locations of captions by language, in the settings of a stage."""
