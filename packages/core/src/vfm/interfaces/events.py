"""Events of a run: small records sent to listeners (console, JSON lines, TensorBoard, plugins).

Types, and the keys of `data`:

    run_started     recipe, directory, stages (list of {name, kind, id, status})
    stage_started   kind, id, status ("new" or "resume"), directory
    progress        done, total, unit, shown (numbers to print beside the progress bar)
    metrics         step, samples, values (flat {"train/loss": 0.7, ...})
    bad_sample      reason, where
    log, warning    message
    settings        step (from which on), settings (incidental ones of a training, by dotted key)
    kernels         running (description of the kernels that a training's layers use)
    stage_finished  kind, id, seconds, cached, numbers (last or main values), units (of the main ones)
    stage_failed    message; with several steps at a time, since the others go on
    run_finished    seconds, report
    run_failed      message, interrupted (by a signal, so that it can go on)
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CRC_KEY = "crc32"  # the last key of a line in a file: a checksum of the line without it
_STAMP = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n?\Z')
_DAMAGED_STAMP = re.compile(rb', "(crc32": "[^"]{8}|[^"]{5}": "[0-9a-f]{8})"\}\n?\Z')


@dataclass(frozen=True)
class Event:
    """One event, with its time and its stage (None: the run itself)."""

    type: str
    stage: str | None
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """Return the event as one line of JSON."""
        return json.dumps(
            {"t": round(self.time, 3), "type": self.type, "stage": self.stage, **self.data}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Return the event of a line made by `to_json`.

        Raises:
            ValueError: the line is no event.
        """
        try:
            record = json.loads(line)
            record.pop(CRC_KEY, None)
            moment, kind, stage = float(record.pop("t")), record.pop("type"), record.pop("stage")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"expected an event, got {line[:60]!r}") from error
        return cls(kind, stage, record, moment)


def stamped(line: bytes) -> bytes:
    """Return a line of `to_json` as it is written to a file: with its CRC-32, and a newline."""
    return b'%s, "%s": "%08x"}\n' % (line[:-1], CRC_KEY.encode(), zlib.crc32(line))


def damaged_lines(lines: Iterable[bytes]) -> list[int]:
    """Return the numbers, from 1, of the lines of a file that are not as `stamped` made them.

    The first lines may be of an older version, without a checksum; they must be JSON.
    """
    damaged, checked = [], False
    for number, line in enumerate(lines, start=1):
        if found := _STAMP.search(line):
            checked = True
            whole = line.endswith(b"\n") and b"%08x" % zlib.crc32(line[: found.start()] + b"}") == found[1]
        else:
            whole = not checked and not _DAMAGED_STAMP.search(line) and _is_json(line)
        if not whole:
            damaged.append(number)
    return damaged


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
