"""Events of a run: small records sent to listeners (console, JSON lines, TensorBoard, plugins).

Types, and the keys of `data`:

    run_started     recipe, directory, stages (list of {name, kind, id, status})
    stage_started   kind, id, status ("new" or "resume"), directory
    progress        done, total, unit, shown (numbers to print beside the progress bar)
    metrics         step, samples, values (flat {"train/loss": 0.7, ...})
    bad_sample      reason, where
    log, warning    message
    kernels         running (description of the kernels that a training's layers use)
    stage_finished  kind, id, seconds, cached, numbers (last or main values)
    run_finished    seconds, report
    run_failed      message
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any


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
            moment, kind, stage = float(record.pop("t")), record.pop("type"), record.pop("stage")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"expected an event, got {line[:60]!r}") from error
        return cls(kind, stage, record, moment)
