"""Settings that do not change a result but for rounding, such as the size of a micro-batch.

They are no part of a stage's identity: a training that ran out of memory goes on from its checkpoint with a smaller
micro-batch. Manifests list which of them were in force from which step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Incidental:
    """The mark of such a field: `log_every: Annotated[int, INCIDENTAL]`. Redefinitions in subclasses inherit it.

    Attributes:
        unless: another field of the same record; while that is set, this one decides the result.
    """

    unless: str = ""


INCIDENTAL = Incidental()


def decisive_settings(config: BaseModel) -> dict[str, Any]:
    """Return a configuration as nested values, without its incidental fields."""
    return {
        name: _decisive(getattr(config, name)) for name in type(config).model_fields if not _is_incidental(config, name)
    }


def incidental_settings(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return the incidental fields of a configuration by their dotted keys, as JSON values."""
    return dict(_incidental(config, prefix))


def _decisive(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return decisive_settings(value)
    if isinstance(value, (list, tuple)):
        return [_decisive(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _decisive(item) for key, item in value.items()}
    return value


def _incidental(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        dumped = value.model_dump(mode="json")
        for name in type(value).model_fields:
            dotted = f"{key}.{name}" if key else name
            if _is_incidental(value, name):
                yield dotted, dumped[name]
            else:
                yield from _incidental(getattr(value, name), dotted)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _incidental(item, f"{key}[{index}]")


def _is_incidental(config: BaseModel, name: str) -> bool:
    models = [model for model in type(config).__mro__ if issubclass(model, BaseModel)]
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    marks = [mark for field in fields for mark in field.metadata if isinstance(mark, Incidental)]
    return any(not mark.unless or not getattr(config, mark.unless) for mark in marks)
