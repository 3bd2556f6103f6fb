"""The last step that a tracker received of each metric, so that a resumed training sends no step twice."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path


class SentSteps:
    """The last step of each metric of each tracker run, kept in a file with a line for each write.

    A line that was cut off by a crash is ignored: its step is sent again.

    Args:
        file: the file, which is created by the first write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.last: dict[str, dict[str, int]] = defaultdict(dict)
        for line in file.read_text().splitlines() if file.is_file() else ():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                self.last[record["run"]].update(dict.fromkeys(record["metrics"], int(record["step"])))

    def without_sent(self, run: str, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Select the values whose metric was last sent at an earlier step."""
        last = self.last[run]
        return {name: value for name, value in values.items() if last.get(name, -1) < step}

    def add(self, run: str, metrics: Iterable[str], step: int) -> None:
        """Record that metrics of a step were sent."""
        names = list(metrics)
        self._write(run, names, step)
        self.last[run].update(dict.fromkeys(names, step))

    def forget(self, run: str) -> None:
        """Forget a run, which starts again from its first step."""
        if self.last[run]:
            self._write(run, list(self.last.pop(run)), -1)

    def _write(self, run: str, metrics: list[str], step: int) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"run": run, "step": step, "metrics": metrics}) + "\n")
