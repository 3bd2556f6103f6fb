"""`evals` of a stage: the ruler's own stages judge a model while it is trained, or on its way to another."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
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
        """Each evaluation with its scores."""
        return judge(self.ctx, self.plan.evals, encoder)


def judge(
    ctx: Context, evals: Sequence[Evaluation], encoder: ImageEncoder
) -> Iterator[tuple[Evaluation, dict[str, float]]]:
    """Each evaluation with a model's scores. Pictures and tables are for evaluations that are stages of their own.

    Of what they tell, warnings alone are passed on: the bar and the counts of bad samples are the stage's around them.
    """

    def tell(event: Event) -> None:
        if event.type == "warning":
            ctx.send(event)

    quiet = replace(ctx, directory=ctx.work / "evals", send=tell, bad=Counter())
    for evaluation in evals:
        shutil.rmtree(quiet.directory, ignore_errors=True)
        quiet.directory.mkdir(parents=True)
        yield evaluation, evaluation.scores(quiet, encoder)
    shutil.rmtree(quiet.directory)
