"""Options of a dataset in a command or a function call: fields of the stage that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from vfm.base import UserError, did_you_mean, error_text, keep_keys, load_function
from vfm.data.pairs.stages import Pairs
from vfm.flow.recipe.yaml_lines import parse_value
from vfm.flow.requests.inputs import Fields
from vfm.interfaces import Stage

# Options that decide the kind of the stage, which the files alone do not.
_KINDS = {"texts": "data.pairs", "label_key": "data.labeled", "class_names": "data.labeled"}
_IMAGE_OPTIONS = ("format", "image_key", "image_root", "texts")
_SET_OTHERWISE = ("kind", "name", "path", "runtime")


def read_data_options(words: Sequence[str]) -> Fields:
    """Read `FIELD=VALUE` words, with values as in a recipe; `texts.en=COLUMN` sets an entry of a mapping.

    Raises:
        UserError: If a word has another form.
    """
    options: Fields = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"data-option {word}: expected FIELD=VALUE, such as image_root=/")
        name, dot, entry = key.partition(".")
        value = parse_value(text, f"data-option {word}")
        if dot and not isinstance(options.setdefault(name, {}), dict):
            raise UserError(f"data-option {word}: {name} is given twice")
        if dot:
            options[name][entry] = value
        else:
            options[name] = value
    return options


def with_data_options(fields: Fields, options: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Fields:
    """Add options to the fields of the stage that imports a path.

    Args:
        fields: Fields of the stage.
        options: Further fields. Captions or labels among them choose the kind of the stage.
        known: Stage types by kind.

    Raises:
        UserError: If the stage has no such field.
    """
    if not options:
        return fields
    kinds = filter(None, map(_KINDS.get, options))
    kind = next(kinds, fields["kind"])
    allowed = known[kind].model_fields
    _check_names(options, [name for name in allowed if name not in _SET_OTHERWISE], kind)
    if kind != fields["kind"] and "split" in allowed:
        split_at = load_function("vfm.flow.recognition.formats:split_at")  # imports pyarrow
        fields = {**fields, **split_at(fields["path"])}
    return {**keep_keys(fields, allowed), "kind": kind, **options}


def image_options(path: str, options: Mapping[str, Any]) -> Pairs:
    """Convert options of a dataset whose images are embedded or drawn. Columns without an option are recognised.

    Raises:
        UserError: If an option is unknown or has a wrong value.
    """
    _check_names(options, _IMAGE_OPTIONS, "images")
    recognised: Fields = {}
    with suppress(UserError):  # reported when the data are read
        recognise = load_function("vfm.flow.recognition.formats:recognise")  # imports pyarrow
        recognised = keep_keys(recognise(path), _IMAGE_OPTIONS)
    try:
        return Pairs.model_validate({"name": "data", "path": path, **recognised, **options})
    except ValidationError as error:
        raise UserError(error_text(error, Pairs, "data-option ")) from None


def _check_names(options: Mapping[str, Any], allowed: Sequence[str], kind: str) -> None:
    for key in options:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise UserError(f"data-option {key}: expected one of {', '.join(allowed)} for {kind}{hint}")
