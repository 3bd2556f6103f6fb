"""What happens during a run, as small records that listeners (console, JSON lines, TensorBoard, plugins) are told.

Types and what `data` carries:

    run_started     recipe, directory, stages (list of {name, kind, id, status})
    stage_started   kind, id, status ("new" or "resume"), directory
    progress        done, total, unit, shown (numbers worth a place beside the bar)
    metrics         step, samples, values (flat {"train/loss": 0.7, ...})
    bad_sample      reason, where
    log, warning    message
    kernels         running (what a training's layers take, in words)
    stage_finished  kind, id, seconds, cached, numbers (the last or headline values)
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
    """Something that happened, when, and in which stage (None: the run itself)."""

    type: str
    stage: str | None
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {"t": round(self.time, 3), "type": self.type, "stage": self.stage, **self.data}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, line: str) -> Event:
        """The event of a line made by `to_json`."""
        record = json.loads(line)
        moment, kind, stage = record.pop("t"), record.pop("type"), record.pop("stage")
        return cls(kind, stage, record, moment)
