"""The folder of a training by `fit`, and the record in it of all that decides the result. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vfm.api.paths import AnyPath
from vfm.base import UserError
from vfm.storage.integrity import read_sealed, seal
from vfm.storage.locks import locked
from vfm.storage.publishing import write_file

RECORD, LOCK = "training.json", ".lock"
START = "initial_weights"  # key of their hash, which is compared with care: a module may be made without a seed


@contextmanager
def open_folder(folder: AnyPath | None) -> Iterator[Path]:
    """Yield the user's folder, or a temporary one.

    Raises:
        UserError: it is a file.
    """
    if folder is None:
        with TemporaryDirectory(prefix="vfm-fit-") as temporary:
            yield Path(temporary)
        return
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UserError(f"{place}: expected a folder, got a file")
    place.mkdir(parents=True, exist_ok=True)
    yield place


@contextmanager
def recorded(place: Path, record: Mapping[str, Any], log: Callable[[str], None]) -> Iterator[Mapping[str, Any]]:
    """Hold the lock of a folder whose record is this one, and yield it; it is written if the folder has none.

    Args:
        place: the folder.
        record: `settings`, `weights` and `data` of the training, and the hash `START` of its initial weights.
        log: called with a line while another training holds the folder.

    Raises:
        UserError: the folder holds another training.
    """
    with locked(place / LOCK, str(place), log):
        given = found = json.loads(json.dumps(record))
        if (place / RECORD).is_file():
            found = {START: given[START], **read_sealed(place / RECORD)}  # an older version did not have it
            _compare(place, found, given)
        else:
            write_file(place / RECORD, seal(given))
        yield found


def _compare(place: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, new = (dict(_flat({key: value for key, value in one.items() if key != START})) for one in (before, now))
    # A setting that the record lacks is one that an older version did not have.
    keys = [*was, *(key for key in new if not key.startswith("settings."))]
    changed = next((key for key in keys if was.get(key) != new.get(key)), None)
    if changed:
        raise UserError(
            f"{place}: holds another training: {changed} was {was.get(changed)}, is {new.get(changed)};"
            " choose another folder, or delete this one"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    else:
        yield key, value
