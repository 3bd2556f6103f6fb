"""Warnings about the metrics of a training run. Each is raised once, when the metrics are logged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from vfm.interfaces import Context, Event
from vfm.storage.store_files import read_json_lines, reading
from vfm.train.loop.curves import METRICS_FILE


class Alarm(ABC):
    """Watches the events of a training run on their way to the listeners.

    It is added by `replace(ctx, send=MyAlarm(ctx, config))`. Warnings that were raised before an interruption are not
    repeated.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.raised = set[str]()
        self.caught_up = False

    @abstractmethod
    def check(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the problems at a step as pairs of a name and a message.

        Args:
            step: Number of optimizer steps so far.
            values: Metrics by their names in the log. Metrics that are not finite are None.
        """

    def __call__(self, event: Event) -> None:
        """Forward the event, and check it if it has metrics of the training."""
        self.ctx.send(event)
        # Evaluations send the same type of event, with scores only.
        if event.type == "metrics" and "train/loss" in event.data["values"]:
            step = event.data["step"]
            if not self.caught_up:
                self._catch_up(step)
            for what, message in self.check(step, event.data["values"]):
                if what not in self.raised:
                    self.raised.add(what)
                    self.ctx.warn(message)

    def _catch_up(self, step: int) -> None:
        """Mark warnings for metrics that an interrupted run logged before `step` as raised."""
        self.caught_up = True
        file = self.ctx.work / METRICS_FILE
        lines = read_json_lines(file) if file.is_file() else []
        with reading(file, "metrics"):
            for line in lines:
                if line["split"] == "train" and line["step"] < step:
                    self.raised.update(what for what, _ in self.check(line["step"], line))
