"""Settings that change a result only by rounding, such as the size of a micro-batch.

They are not part of a stage's identity: a training run that ran out of memory resumes from its checkpoint with a
smaller micro-batch. Manifests list these settings and the step from which they applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vfm.base.plain_data import map_items


@dataclass(frozen=True)
class Incidental:
    """Marks an incidental field, as in `log_every: Annotated[int, INCIDENTAL]`.

    Redefinitions in subclasses inherit it.

    Attributes:
        unless: Another field of the same record. While it is set, the marked field does change the result.
    """

    unless: str = ""


INCIDENTAL = Incidental()


def decisive_settings(config: BaseModel) -> dict[str, Any]:
    """Dump a configuration as nested values, without its incidental fields."""
    settings = {}
    for name in type(config).model_fields:
        if not _is_incidental(config, name):
            settings[name] = _decisive(getattr(config, name))
    return settings


def incidental_settings(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Collect the incidental fields of a configuration by their dotted keys, as JSON values."""
    return dict(_incidental(config, prefix))


def _decisive(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return decisive_settings(value)
    return map_items(_decisive, value)


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
    for model in type(config).__mro__:  # all base classes, since a redefined field loses its metadata
        if not issubclass(model, BaseModel) or name not in model.model_fields:
            continue
        for mark in model.model_fields[name].metadata:
            if isinstance(mark, Incidental) and not (mark.unless and getattr(config, mark.unless)):
                return True
    return False
