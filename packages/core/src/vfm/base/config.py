"""The base of every configuration, and its error messages: one readable line for each mistake."""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from vfm.base.redaction import MASK, is_secret_name, redacted
from vfm.base.unknown_keys import dotted_keys, first_model, unknown_key


class UserError(ValueError):
    """A mistake that the user can correct.

    It is described in one line: what is wrong, where, and what is allowed. The command line prints the line and exits
    with code 2. It shows a traceback only with `--debug`.
    """


class Config(BaseModel):
    """Hold settings in a frozen object that rejects unknown keys and numbers that are not finite.

    It is the base of stages, parts and groups of settings. Measured values, which may be NaN, are in a `Record`.

    If the default of a field is a group or a part, a mapping given for this field updates the default: with
    `optimizer: Optimizer = AdamW(weight_decay=0.2)`, the mapping `{betas: [0.9, 0.95]}` keeps the weight decay.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        arbitrary_types_allowed=False,
        allow_inf_nan=False,
        defer_build=True,  # a recipe uses a few of the classes
    )

    moved: ClassVar[Mapping[str, str]] = {}  # old keys and where they are now, for the error message

    @classmethod
    def known_keys(cls) -> list[str]:
        """List the keys that error messages suggest."""
        return list(cls.model_fields)

    def model_post_init(self, context: Any, /) -> None:
        """Mark `kind` and `type` as set, so that the given settings suffice to build the object again."""
        self.model_fields_set.update({"kind", "type"} & set(type(self).model_fields))

    def given_settings(self) -> dict[str, Any]:
        """Dump the settings that were given, as JSON values. Any process can build an equal object from them.

        Dumping all settings would not work: some validators reject a combination only if both settings were given.
        """
        return self.model_dump(mode="json", exclude_unset=True)

    @model_validator(mode="before")
    @classmethod
    def _merge_into_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        merged = {}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, BaseModel) and isinstance(data.get(name), Mapping):
                merged[name] = _merged(field.default, data[name])
        return {**data, **merged} if merged else data


class Record(Config):
    """Hold measured values, which may be NaN or infinite. It is the base of artifacts and of the objects in them."""

    model_config = ConfigDict(allow_inf_nan=True)


def _merged(default: BaseModel, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Update the settings of `default` with `given`. A part of another type replaces the default."""
    return merge_settings(default.model_dump(exclude_unset=True), given)


def merge_settings(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings: `given` overrides `base`. A part of another type replaces the whole part."""
    if "type" in given and given["type"] != base.get("type"):
        return dict(given)
    merged = {**base, **given}
    for key, value in base.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = merge_settings(value, given[key])
    return merged


def load_function(address: str) -> Callable[..., Any]:
    """Import the function or class at `"package.module:name"`."""
    module, _, name = address.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


SENTENCE = "sentence"  # the type of an error whose line is already written
BOUNDS = {  # by type of error
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
KEY_ERRORS = {"extra_forbidden", "missing", SENTENCE}  # errors whose location ends in a key as the user wrote it


def error_lines(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[str | int, ...], str]]:
    """List pydantic's errors as (location, line), without the noise of unions.

    A union reports one error per branch. If the value has the type of a branch and is only out of bounds, not finite,
    or refused by its validator, the error of this branch is used. Otherwise it is the error of the last branch other
    than `None`, the most likely intention. If there is an error within the value, the value was meant as a part, so the
    errors of the branches are dropped.
    """
    lines: dict[tuple[str | int, ...], str] = {}
    of_right_type: set[tuple[str | int, ...]] = set()
    for details in error.errors(include_url=False):
        whole = details["loc"]
        num_keys = 1 if details["type"] in KEY_ERRORS else 0
        above, last = whole[: len(whole) - num_keys], whole[len(whole) - num_keys :]
        location = (*(part for part in above if not _is_branch(part)), *last)
        if details["type"] in BOUNDS or details["type"] in ("value_error", "finite_number"):
            of_right_type.add(location)
        elif location in of_right_type:
            continue
        lines[location] = _sentence(details, location, model)
    parts: set[tuple[str | int, ...]] = set()
    for location in lines:
        parts.update(location[:end] for end in range(len(location)))
    return [(location, line) for location, line in lines.items() if location not in parts]


def error_text(error: ValidationError, model: type[BaseModel], start: str) -> str:
    """Write pydantic's errors, one line each: `start`, the dotted key and the mistake."""
    lines = []
    for location, line in error_lines(error, model):
        key = ".".join(map(str, location))
        lines.append(f"{start}{key}: {line}")
    return "\n".join(lines)


def readable(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """Write out the lines of an error, for a value whose model is chosen during validation."""
    written = [
        InitErrorDetails(type=PydanticCustomError(SENTENCE, "{line}", {"line": line}), loc=location, input=None)
        for location, line in error_lines(error, model)
    ]
    return ValidationError.from_exception_data(error.title, written)


def _is_branch(part: str | int) -> bool:
    """Check whether a part of pydantic's location is a branch of a union (`int`, `list[str]`, `Part`), not a key."""
    return isinstance(part, str) and (
        not part.isidentifier() or part in {"int", "float", "str", "bool"} or part[0].isupper()
    )


def _sentence(details: ErrorDetails, location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    given = details.get("input")
    if given and any(is_secret_name(part) for part in location):  # an invalid value may be a secret nevertheless
        shown = _line(details, location, model, MASK)
        return re.sub(rf"(?<!\w){re.escape(str(given))}(?!\w)", MASK, shown)  # a validator may have written it
    return _line(details, location, model, redacted(given))


def _line(details: ErrorDetails, location: tuple[str | int, ...], model: type[BaseModel], given: object) -> str:
    kind = details["type"]
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), given, _model_at(model, location[:-1]))
    if kind == "missing":
        owner = _model_at(model, location[:-1])
        field = owner.model_fields.get(str(location[-1])) if owner else None
        return "is required" + (f" ({field.description})" if field and field.description else "")
    if kind in ("literal_error", "union_tag_invalid", "enum"):
        # pydantic joins the last two choices by "or".
        allowed = context.get("expected") or context.get("expected_tags", "")
        return f"{_short(given)} is not a valid choice; choose from {allowed.replace(' or ', ', ')}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a mapping of keys to values, got {_short(given)}"
    if kind == SENTENCE:
        return str(context["line"])
    if kind in BOUNDS:
        # These errors have a single bound, such as `ge`.
        (bound,) = context.values()
        return f"must be {BOUNDS[kind]} {bound:g}, got {_short(given)}"
    message = details["msg"]
    if message.startswith("Input should be "):
        # The rest of pydantic's sentence repeats the kind of the error.
        expected = re.split(", (?:unable|got)", message.removeprefix("Input should be "))[0]
        return f"expected {expected.replace('a valid i', 'an i').replace('a valid ', 'a ')}, got {_short(given)}"
    if kind == "string_pattern_mismatch":
        return f"expected a string that matches {context['pattern']}, got {_short(given)}"
    return f"{_short(given)}: {message[0].lower()}{message[1:]}"


def _unknown_key(key: str, value: object, owner: type[BaseModel] | None) -> str:
    if owner is None:
        return "unknown key"
    names = owner.known_keys() if issubclass(owner, Config) else list(owner.model_fields)
    return unknown_key(key, value, dotted_keys(owner, names), getattr(owner, "moved", None))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Find the model at `location`, whose field names can be suggested."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = field and first_model(field.annotation)
        if not inner:
            return None
        model = inner
    return model
