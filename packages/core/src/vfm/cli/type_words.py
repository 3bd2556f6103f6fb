"""Types and values of settings in the words of a recipe, for people who have never seen a type annotation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from vfm.config import Config
from vfm.stage import Ref, Stage

PLAIN = {type(None): "null", Any: "anything"}


def field_rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each setting; those of a part stand below it, as `--set` names them."""
    for name, field in model.model_fields.items():
        if name in ("kind", "type"):
            continue
        parts = list(_parts(field.annotation))
        default = "required" if field.is_required() else value_words(field.get_default(call_default_factory=True))
        shown_below = len(parts) == 1 and not _tags(parts[0])
        words = "mapping" if shown_below else type_words(field.annotation)
        yield prefix + name, words, "" if shown_below else default, field.description or ""
        below: dict[tuple[str, str, str, str], list[str]] = {}
        for part in parts:
            for row in field_rows(part, f"{prefix}{name}."):
                below.setdefault(row, []).extend(_tags(part))
        for (child, words, default, meaning), tags in below.items():
            yield child, words, default, f"{', '.join(tags)}: {meaning}" if tags else meaning


def type_words(annotation: Any) -> str:
    """What may stand in a recipe for a field of this type: `float | null`, `[float, float]`, `{type: a | b}`."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(inside[0])
    if origin is Literal:
        return " | ".join(map(value_words, inside))
    if origin in (Union, UnionType):
        tagged = [word for part in inside for word in _tags(part)]
        rest = [type_words(part) for part in inside if not _tags(part)]
        return " | ".join(dict.fromkeys(([f"{{type: {' | '.join(tagged)}}}"] if tagged else []) + rest))
    if origin is Ref:
        return f"name of {' | '.join(kind.__name__ for kind in get_args(inside[0]) or inside)}"
    if origin is tuple and inside[-1:] != (...,):
        return f"[{', '.join(map(type_words, inside))}]"
    if origin in (tuple, list):
        return f"list of {type_words(inside[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {' to '.join(map(type_words, inside))}"
    if tags := _tags(annotation):
        return f"{{type: {' | '.join(tags)}}}"
    if isinstance(annotation, type) and issubclass(annotation, Config) and not issubclass(annotation, Stage):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation)).lower()


def value_words(value: Any) -> str:
    """A value as a recipe would have it, on one line."""
    plain = to_jsonable_python(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configurations that may stand for a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)


def _tags(kind: Any) -> list[str]:
    """The `type` by which a configuration is told from others that may stand in its place."""
    if get_origin(kind) is Annotated:
        return _tags(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [tag for part in get_args(kind) for tag in _tags(part)]
    if isinstance(kind, type) and issubclass(kind, BaseModel) and (field := kind.model_fields.get("type")):
        return [str(tag) for tag in get_args(field.annotation)]
    return []
