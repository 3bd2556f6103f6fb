"""The base of every configuration, and how a mistake in one is told: one readable line per error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


class UserError(ValueError):
    """A mistake that the user can mend: one clear line a mistake (what, where, what is allowed).

    The command line prints the lines and exits with code 2; no traceback is shown without `--debug`.
    """


class Config(BaseModel):
    """A frozen record that refuses unknown keys. Stages, artifacts' facts and their parts are such records."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=False)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'steps'?`, or the known words where none is near, or nothing."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 30 else ""


TOLD = "told"  # the type of an error whose sentence is made already
KEY_ERRORS = {"extra_forbidden", "missing", TOLD}  # where the location ends in a key as the user wrote it


def error_lines(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[str | int, ...], str]]:
    """Pydantic's errors as (location, one line), without the noise of unions.

    Of the errors that a union reports for one value, one per branch, only the last branch that is not
    `None` is kept, since a value that fits no branch was most likely meant for that one; and none of them where a
    part of the value is told of, which was meant for the branch that has such a part.
    """
    lines: dict[tuple[str | int, ...], str] = {}
    for details in error.errors(include_url=False):
        whole = details["loc"]
        num_keys = 1 if details["type"] in KEY_ERRORS else 0
        above, last = whole[: len(whole) - num_keys], whole[len(whole) - num_keys :]
        location = (*(part for part in above if not _is_branch(part)), *last)
        lines[location] = _sentence(details, location, model)
    parts = {location[:end] for location in lines for end in range(len(location))}
    return [(location, line) for location, line in lines.items() if location not in parts]


def readable(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """The error with its lines spelled out, for a part whose type is only known while the whole is validated."""
    told = [
        InitErrorDetails(type=PydanticCustomError(TOLD, "{line}", {"line": line}), loc=location, input=None)
        for location, line in error_lines(error, model)
    ]
    return ValidationError.from_exception_data(error.title, told)


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location names a branch of a union (`int`, `list[str]`, `Part`), not a key."""
    return isinstance(part, str) and (
        not part.isidentifier() or part in {"int", "float", "str", "bool"} or part[0].isupper()
    )


def _sentence(details: ErrorDetails, location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    kind, given = details["type"], details.get("input")
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        return "unknown key" + did_you_mean(str(location[-1]), owner.model_fields if owner else ())
    if kind == "missing":
        owner = _model_at(model, location[:-1])
        field = owner.model_fields.get(str(location[-1])) if owner else None
        return "is required" + (f" ({field.description})" if field and field.description else "")
    if kind in ("literal_error", "union_tag_invalid", "enum"):
        allowed = context.get("expected") or context.get("expected_tags", "")
        return f"{given!r} is not allowed; choose from {allowed.replace(' or ', ', ')}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type"):
        return f"{_short(given)} is wrong: should be a mapping of keys to values"
    if kind == TOLD:
        return str(context["line"])
    message = details["msg"].removeprefix("Input ").replace("should be a valid ", "should be ")
    return f"{_short(given)} is wrong: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that the keys of `location` lead to, so that its field names can be suggested."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = field and _first_model(field.annotation)
        if not inner:
            return None
        model = inner
    return model


def _first_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _first_model(part))), None)
