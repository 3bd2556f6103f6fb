"""A training's `evals`: the ruler's own stages judge the model while it is trained."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from vfm.eval.encode import ImageEncoder
from vfm.events import Event
from vfm.interfaces import Evaluation, Training
from vfm.stage import Context


class Evals:
    """The evaluations of a plan: when they are due, and what they say of a model.

    They draw nothing from torch's generators that training would miss: each of its forward passes is seeded anew.
    """

    def __init__(self, plan: Training, ctx: Context) -> None:
        self.plan, self.ctx = plan, ctx

    def due(self, step: int) -> bool:
        """Whether the model is judged after this step: every `eval_every` steps, and after the last."""
        every = self.plan.eval_every or self.plan.num_steps
        return bool(self.plan.evals) and (step % every == 0 or step == self.plan.num_steps)

    def judge(self, encoder: ImageEncoder) -> Iterator[tuple[Evaluation, dict[str, float]]]:
        """Each evaluation with its scores. Pictures and tables are for evaluations that are stages of their own."""
        ctx = replace(self.ctx, directory=self.ctx.work / "evals", send=self._tell, bad=Counter())
        for evaluation in self.plan.evals:
            shutil.rmtree(ctx.directory, ignore_errors=True)
            ctx.directory.mkdir()
            yield evaluation, evaluation.scores(ctx, encoder)
        shutil.rmtree(ctx.directory)

    def _tell(self, event: Event) -> None:
        """Warnings alone: the bar and the counts of bad samples are the training's."""
        if event.type == "warning":
            self.ctx.send(event)
