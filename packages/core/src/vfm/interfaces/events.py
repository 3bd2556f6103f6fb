"""Events of a run: small records sent to listeners (console, JSON lines, TensorBoard, plugins).

Types, and the keys of `data`:

    run_started     recipe, directory, stages (list of {name, kind, id, status})
    stage_started   kind, id, status ("new" or "resume"), directory
    progress        done, total, unit, shown (numbers to print next to the progress bar)
    metrics         step, samples, values (flat {"train/loss": 0.7, ...})
    bad_sample      reason, where
    log, warning    message
    settings        step (the first with these settings), settings (incidental ones of a training run, by dotted key)
    kernels         running (description of the kernels that the layers of a training run use)
    stage_finished  kind, id, seconds, cached, numbers (last or main values), units (of the main values)
    stage_failed    message. Sent if several steps run at a time, since the other steps continue
    run_finished    seconds, report
    run_failed      message, interrupted (by a signal, so that the run can be resumed)
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CRC_KEY = "crc32"  # last key of a line in a file: a checksum of the rest of the line
_STAMP = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n?\Z')
_DAMAGED_STAMP = re.compile(rb', "(crc32": "[^"]{8}|[^"]{5}": "[0-9a-f]{8})"\}\n?\Z')


@dataclass(frozen=True)
class Event:
    """An event, with its time and its stage (None: the run itself)."""

    type: str
    stage: str | None
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """Serialize the event as one line of JSON."""
        return json.dumps(
            {"t": round(self.time, 3), "type": self.type, "stage": self.stage, **self.data}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Parse a line written by `to_json`.

        Raises:
            ValueError: If the line is not an event.
        """
        try:
            record = json.loads(line)
            record.pop(CRC_KEY, None)
            moment, kind, stage = float(record.pop("t")), record.pop("type"), record.pop("stage")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"expected an event, got {line[:60]!r}") from error
        return cls(kind, stage, record, moment)


def stamped(line: bytes) -> bytes:
    """Convert a line of `to_json` to the form used in files: with its CRC-32 and a newline."""
    return b'%s, "%s": "%08x"}\n' % (line[:-1], CRC_KEY.encode(), zlib.crc32(line))


def damaged_lines(lines: Iterable[bytes]) -> list[int]:
    """Find the lines of a file that `stamped` did not write, and return their numbers, from 1.

    The first lines may be of an older version without checksums. They must be JSON.
    """
    damaged, checked = [], False
    for number, line in enumerate(lines, start=1):
        stamp = _STAMP.search(line)
        if stamp:
            checked = True
            whole = line.endswith(b"\n") and b"%08x" % zlib.crc32(line[: stamp.start()] + b"}") == stamp[1]
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
