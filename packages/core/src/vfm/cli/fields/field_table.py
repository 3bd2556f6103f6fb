"""Show the fields of a stage for `vfm stages KIND`, with types and defaults in the notation of recipes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from vfm.base import Config, Part, UserError, choices_of, did_you_mean
from vfm.interfaces import Ref, Stage

PLAIN = {type(None): "null", Any: "anything"}
REQUIRED = "required"  # in place of a default
VALUE_WIDTH = 20  # characters; a row is 80 columns wide
NOT_SET = object()  # the default of a required field


@dataclass(frozen=True)
class FieldRow:
    """A row of the table.

    Attributes:
        cells: Name, type, default and description of a field. Names are dotted as in `--set`. `[]` stands for an item
            of a list. `--set` cannot address these.
        heading: Whether the row begins a group of fields: a mapping, a slot, or the fields of a base class, whose name
            is in brackets.
    """

    cells: tuple[str, str, str, str]
    heading: bool = False


def field_rows(model: type[BaseModel]) -> Iterator[FieldRow]:
    """Yield the fields of a stage.

    Plain fields come first, by the class that defines them, then each group and slot. The class of the stage is the
    first one, and `runtime` comes last.
    """
    plain: dict[type, list[FieldRow]] = {}  # by the class that defines the field
    groups = {}
    for name, field in model.model_fields.items():
        if name in ("kind", "type"):
            continue
        if list(_models(field.annotation)):
            groups[name] = field
        else:
            plain.setdefault(_defined_in(model, name), []).append(_row(name, field, _default(field)))
    for base in model.__mro__:
        rows = plain.get(base, [])
        if rows and base is not model:
            yield FieldRow((f"({base.__name__})", "", "", (base.__doc__ or "").strip().split("\n", 1)[0]), heading=True)
        yield from rows
    for name, field in sorted(groups.items(), key=lambda item: item[0] == "runtime"):
        first, *rest = _field(name, field, _default(field))
        yield FieldRow(first.cells, heading=True)
        yield from rest


def overview(model: type[BaseModel], width: int) -> list[str]:
    """Write a line for each field of a stage, without nested ones, with its name, default or type, and description.

    Required fields are first, then the others by the class that defines them, then groups.

    Args:
        model: The stage.
        width: Most characters of a line.
    """
    sections: dict[str, list[FieldRow]] = {"required": [], "settings": []}
    groups = []
    title = "settings"
    for row in field_rows(model):
        if "." in row.cells[0] or "[" in row.cells[0]:  # nested
            continue
        is_class = row.heading and row.cells[0].startswith("(")
        if is_class:
            title = f"settings of {row.cells[0].strip('()')}"
        elif row.cells[2] == REQUIRED:
            sections["required"].append(row)
        elif row.heading:
            groups.append(row)
        else:
            sections.setdefault(title, []).append(row)
    lines = []
    for title, rows in {**sections, "groups": groups}.items():
        if rows:
            lines += ["", title, *(_line(row, width) for row in rows)]
    return lines


def _line(row: FieldRow, width: int) -> str:
    name, words, default, about = row.cells
    value = words if default == REQUIRED else default or "{...}"
    return _cut(f"  {name:<18} {_cut(value, VALUE_WIDTH):<{VALUE_WIDTH}} {about}", width)


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return text[: width - 1] + "…"


def rows_of(model: type[BaseModel], name: str) -> list[FieldRow]:
    """List a field and its nested fields.

    Raises:
        UserError: If there is no such field.
    """
    rows = list(field_rows(model))
    chosen = [FieldRow(row.cells) for row in rows if re.match(rf"{re.escape(name)}(\.|\[|$)", row.cells[0])]
    if not chosen:
        known = [row.cells[0] for row in rows if not row.cells[0].startswith("(")]
        raise UserError(f"{name}: no such field{did_you_mean(name, known)}")
    return chosen


def _defined_in(model: type[BaseModel], name: str) -> type:
    """Find the class that defines a field, or redefines it."""
    return next(base for base in model.__mro__ if name in inspect.get_annotations(base))


def _rows(model: type[BaseModel], prefix: str, defaults: object) -> Iterator[FieldRow]:
    """Yield the rows of a model's fields. If `defaults` is an instance of the model, it gives their defaults."""
    for name, field in model.model_fields.items():
        if name not in ("kind", "type"):
            if isinstance(defaults, model):
                default = getattr(defaults, name)
            else:
                default = _default(field)
            yield from _field(prefix + name, field, default)


def _field(name: str, field: FieldInfo, default: Any) -> Iterator[FieldRow]:
    """Yield the row of a field, and the rows of nested fields."""
    yield _row(name, field, default)
    for model, in_list in _models(field.annotation):
        inner = f"{name}[]." if in_list else f"{name}."
        choices = choices_of(model)
        if len(choices) == 1 and not _tags(model):
            yield from _rows(model, inner, default)
        else:
            yield from _slot_rows(choices, inner, default)


def _slot_rows(choices: Sequence[type[BaseModel]], prefix: str, default: Any) -> Iterator[FieldRow]:
    """Yield the common fields of all choices of a slot, then each type with its additional fields.

    A common field is listed again under a type with another default.
    """
    by_type = {_tags(choice)[0]: list(_rows(choice, prefix, default)) for choice in choices}
    shown = type(default) if type(default) in choices else choices[0]
    common = set.intersection(*(set(map(_without_default, rows)) for rows in by_type.values()))
    shared = []
    for row in by_type[_tags(shown)[0]]:
        if _without_default(row) in common:
            shared.append(row)
    yield from shared
    for choice in choices:
        (tag,) = _tags(choice)
        about = choice.model_fields["type"].description or (choice.__doc__ or "").strip().split("\n", 1)[0]
        yield FieldRow((f"{prefix}type: {tag}", "", "", about))
        for row in by_type[tag]:
            if row not in shared:
                yield row


def _without_default(row: FieldRow) -> tuple[str, str, str]:
    """Select the cells of a row that the choices of a slot have in common."""
    name, words, _, about = row.cells
    return name, words, about


def _row(name: str, field: FieldInfo, default: Any) -> FieldRow:
    """Build the row of a field. Nested fields have separate rows for their defaults."""
    if default is NOT_SET:
        words = REQUIRED
    elif isinstance(default, Part):
        words = f"{{type: {default.type}}}"
    elif isinstance(default, BaseModel):
        words = ""
    else:
        words = value_words(default)
    is_group = isinstance(default, BaseModel) and not isinstance(default, Part)
    return FieldRow((name, "mapping" if is_group else type_words(field.annotation), words, field.description or ""))


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return NOT_SET
    return field.get_default(call_default_factory=True)


def type_words(annotation: Any) -> str:
    """Format a type in the notation of recipes, such as `float | null`, `[float, float]` or `{type: a | b}`."""
    origin = get_origin(annotation)
    inside = get_args(annotation)
    if origin is Annotated:
        return type_words(inside[0])
    if origin is Literal:
        return " | ".join(map(value_words, inside))
    if origin in (Union, UnionType):
        # The parts of a slot are written as one choice of `type`, and all other types after it.
        tagged: list[str] = []
        for part in inside:
            tagged += _tags(part)
        rest = [type_words(part) for part in inside if not _tags(part)]
        slots = [f"{{type: {' | '.join(tagged)}}}"] if tagged else []
        return " | ".join(dict.fromkeys(slots + rest))
    if origin is Ref:
        return f"name of {' | '.join(kind.__name__ for kind in get_args(inside[0]) or inside)}"
    if origin is tuple and inside[-1:] != (...,):
        return f"[{', '.join(map(type_words, inside))}]"
    if origin in (tuple, list):
        return f"list of {type_words(inside[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {' to '.join(map(type_words, inside))}"
    tags = _tags(annotation)
    if tags:
        return f"{{type: {' | '.join(tags)}}}"
    if isinstance(annotation, type) and issubclass(annotation, Stage):
        return f"{annotation.__name__.lower()} stage"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation)).lower()


def value_words(value: Any) -> str:
    """Format a value in the notation of recipes, on one line."""
    plain = to_jsonable_python(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    if "\n" not in text:
        return text
    return json.dumps(plain)  # quoted YAML breaks the line at every line break of a value


def _models(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the configurations that a field can hold, and whether it holds a list of them. Stages are not listed."""
    origin = get_origin(annotation)
    inside = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not issubclass(annotation, Stage):
            yield annotation, in_list
    elif origin is Annotated:
        yield from _models(inside[0], in_list)
    elif origin in (Union, UnionType):
        for part in inside:
            yield from _models(part, in_list)
    elif origin in (tuple, list) and inside:
        yield from _models(inside[0], in_list=True)


def _tags(kind: Any) -> list[str]:
    """List the values of `type` of a slot, or of a choice. Other types have none."""
    if get_origin(kind) is Annotated:
        return _tags(get_args(kind)[0])
    if not (isinstance(kind, type) and issubclass(kind, Part)):
        return []
    tags: list[str] = []
    for choice in choices_of(kind):
        tags += map(str, get_args(choice.model_fields["type"].annotation))
    return tags
