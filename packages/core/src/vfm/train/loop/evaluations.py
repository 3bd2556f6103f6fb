"""Evaluations of a model during its training, or of the models between two (`models.interpolate`)."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from vfm.interfaces import Context, Evaluation, Event, LeftToFirst, Training
from vfm.train.parallel.dist import World
from vfm.train.parallel.sharing import sharing

S = TypeVar("S")


class Evaluations:
    """The evaluations of a training: when they are due, and their scores.

    They do not disturb the training's random draws, since each of its forward passes is seeded anew.
    """

    def __init__(self, config: Training, ctx: Context) -> None:
        self.policy, self.num_steps, self.ctx = config.evaluation, config.num_steps, ctx

    def due(self, step: int) -> bool:
        """Return whether to evaluate after this step: every `every_steps`, and after the last."""
        every = self.policy.every_steps or self.num_steps
        return bool(self.policy.tasks) and (step % every == 0 or step == self.num_steps)

    def run(self, encoder: Any, world: World) -> Iterator[tuple[Evaluation, Mapping[str, float]]]:
        """Yield each evaluation with its scores for `encoder`."""
        return run_evaluations(self.ctx, self.policy.tasks, encoder, world, values_of)


def values_of(evaluation: Evaluation, ctx: Context, encoder: Any) -> Mapping[str, float]:
    """Return the value of each metric."""
    return evaluation.scores(ctx, encoder)


def run_evaluations(
    ctx: Context,
    evaluations: Sequence[Evaluation],
    encoder: Any,
    world: World,
    evaluate: Callable[[Evaluation, Context, Any], Mapping[str, S]],
) -> Iterator[tuple[Evaluation, Mapping[str, S]]]:
    """Yield each evaluation with what `evaluate` returns for a model, in the first process.

    The others compute their share of the batches, or wait where an evaluation shares none (`Stage.in_processes`), and
    yield nothing. Panels are discarded, and of the events only warnings are sent: progress and counts of bad samples
    belong to the stage that trains.
    """

    def send(event: Event) -> None:
        if event.type == "warning":
            ctx.send(event)

    quiet = replace(ctx, directory=ctx.work / f"evals-{world.rank}", send=send, bad=Counter())
    for evaluation in evaluations:
        shutil.rmtree(quiet.directory, ignore_errors=True)
        quiet.directory.mkdir(parents=True)
        scores: Mapping[str, S] = {}
        if evaluation.in_processes:
            with suppress(LeftToFirst), sharing(world):
                scores = evaluate(evaluation, quiet, encoder)
        elif world.is_main:
            scores = evaluate(evaluation, quiet, encoder)
        if world.is_main:
            yield evaluation, scores
    shutil.rmtree(quiet.directory)
