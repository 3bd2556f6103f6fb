"""Says in words what the numbers of a training mean when something is wrong; once each, where they are logged."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from vfm.events import Event
from vfm.stage import Context
from vfm.train.curves import METRICS_FILE


class Alarm(ABC):
    """Stands between a training and its listeners: `replace(ctx, send=MyAlarm(ctx, plan))`.

    What a training that was interrupted had told is not told again.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.told, self.caught_up = ctx, set[str](), False

    @abstractmethod
    def look(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What ails the training at a step, by name and in words.

        Args:
            step: optimiser steps so far.
            values: the training's numbers by the names that the log has; None stands for what is not finite.
        """

    def __call__(self, event: Event) -> None:
        """Passes the event on, and looks at it where it is a line of the training's numbers."""
        self.ctx.send(event)
        if event.type == "metrics" and "train/loss" in event.data["values"]:
            step = event.data["step"]
            if not self.caught_up:
                self._catch_up(step)
            for what, message in self.look(step, event.data["values"]):
                if what not in self.told:
                    self.told.add(what)
                    self.ctx.warn(message)

    def _catch_up(self, step: int) -> None:
        """Looks at what a run that was interrupted logged before `step`: what it gave rise to was told then."""
        self.caught_up = True
        file = self.ctx.work / METRICS_FILE
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines() if file.is_file() else ()):
            if line["split"] == "train" and line["step"] < step:
                self.told.update(what for what, _ in self.look(line["step"], line))
