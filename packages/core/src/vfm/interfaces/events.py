"""Small records of a run that are sent to listeners, such as the console, JSON lines and plugins.

Types, and the keys of `data`:

    run_started     recipe, directory, stages (list of {name, kind, id, status})
    stage_started   kind, id, status ("new" or "resume"), directory
    progress        done, total (None if it is not known), unit, shown (numbers to print next to the progress bar)
    metrics         step, samples, values (flat {"train/loss": 0.7, ...})
    bad_sample      reason, where, and lacks_data if it may come back
    log             message
    warning         message, and lacks_data if the artifact lacks data that may come back
    settings        step (the first with these settings), settings (incidental ones of a training run, by dotted key)
    kernels         running (description of the kernels that the layers of a training run use)
    stage_finished  kind, id, seconds, cached, numbers (last or main values), units (of the main values)
    stage_failed    message. Sent if several steps run at a time, since the other steps continue
    run_finished    seconds, report
    run_failed      message, interrupted (by a signal, so that the run can be resumed)
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from vfm.storage.chained_lines import CHAIN_KEY, CRC_KEY


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
            for key in (CHAIN_KEY, CRC_KEY):
                record.pop(key, None)
            moment = float(record.pop("t"))
            kind = record.pop("type")
            stage = record.pop("stage")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"expected an event, got {line[:60]!r}") from error
        return cls(kind, stage, record, moment)
