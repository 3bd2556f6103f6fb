"""The folder of a run of `fit`, and its record of everything that determines the result. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vfm.api.paths import AnyPath
from vfm.base import UserError, drop_keys
from vfm.storage.integrity import read_sealed, seal
from vfm.storage.locks import locked
from vfm.storage.publishing import write_file

RECORD = "training.json"
LOCK = ".lock"
START = "initial_weights"  # key of their hash, which need not be equal: a module may be made without a seed


@contextmanager
def open_folder(folder: AnyPath | None) -> Iterator[Path]:
    """Yield the user's folder, or a temporary one.

    Raises:
        UserError: If it is a file.
    """
    if folder is None:
        with TemporaryDirectory(prefix="vfm-fit-") as temporary:
            yield Path(temporary)
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected a folder, got a file")
    path.mkdir(parents=True, exist_ok=True)
    yield path


@contextmanager
def recorded(folder: Path, record: Mapping[str, Any], log: Callable[[str], None]) -> Iterator[Mapping[str, Any]]:
    """Lock a folder, compare its record with this one, and yield the record. A missing record is written first.

    Args:
        folder: The folder.
        record: `settings`, `weights` and `data` of the run, and the hash `START` of its initial weights.
        log: Called with a line while another run holds the folder.

    Raises:
        UserError: If the folder holds another training run.
    """
    with locked(folder / LOCK, str(folder), log):
        current = stored = json.loads(json.dumps(record))
        if (folder / RECORD).is_file():
            stored = {START: current[START], **read_sealed(folder / RECORD)}  # older versions did not store START
            _compare(folder, stored, current)
        else:
            write_file(folder / RECORD, seal(current))
        yield stored


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was = _settings(before)
    new = _settings(now)
    # Older versions did not have all settings, so settings missing from the record are not compared.
    for key in dict.fromkeys([*was, *new]):
        if key not in was and key.startswith("settings."):
            continue
        if was.get(key) != new.get(key):
            raise UserError(
                f"{folder}: holds another training: {key} was {was.get(key)}, is {new.get(key)};"
                " choose another folder, or delete this one"
            )


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_flat(drop_keys(record, (START,))))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    else:
        yield key, value
