"""Evaluations of a model in training, or of interpolated models (`models.interpolate`)."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from vfm.interfaces import Context, Evaluation, Event, LeftToFirst, Training
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.sharing import repeating, sharing

S = TypeVar("S")


class Evaluations:
    """The evaluations of a training run, with their schedule and their scores.

    They do not change the random draws of the training, because each training forward pass is seeded anew.
    """

    def __init__(self, config: Training, ctx: Context) -> None:
        self.policy = config.evaluation
        self.num_steps = config.num_steps
        self.ctx = ctx

    def due(self, step: int) -> bool:
        """Check whether to evaluate after this step.

        Evaluations are due every `every_steps` steps and after the last step.
        """
        every = self.policy.every_steps or self.num_steps
        return bool(self.policy.tasks) and (step % every == 0 or step == self.num_steps)

    def run(
        self, encoder: Any, world: DistributedWorld, *, shared: bool
    ) -> Iterator[tuple[Evaluation, Mapping[str, float]]]:
        """Evaluate a model, and yield each evaluation with its scores.

        Args:
            encoder: As in `run_evaluations`.
            world: As in `run_evaluations`.
            shared: As in `run_evaluations`.
        """
        return run_evaluations(self.ctx, self.policy.tasks, encoder, world, values_of, shared=shared)


def values_of(evaluation: Evaluation, ctx: Context, encoder: Any) -> Mapping[str, float]:
    """Compute the value of each metric for a model.

    Args:
        evaluation: The evaluation.
        ctx: Context of the stage that trains.
        encoder: The model.
    """
    return evaluation.scores(ctx, encoder)


def run_evaluations(
    ctx: Context,
    evaluations: Sequence[Evaluation],
    encoder: Any,
    world: DistributedWorld,
    evaluate: Callable[[Evaluation, Context, Any], Mapping[str, S]],
    *,
    shared: bool = True,
) -> Iterator[tuple[Evaluation, Mapping[str, S]]]:
    """Evaluate a model, and yield each evaluation with its result in rank 0.

    The other processes compute their share of the batches, or wait if an evaluation is not shared
    (`Stage.in_processes`), and yield nothing. Panels are discarded. Only warnings are sent as events, because progress
    and counts of bad samples belong to the stage that trains.

    Args:
        ctx: Context of the stage that trains.
        evaluations: Evaluations to run.
        encoder: The model.
        world: This process.
        evaluate: Computes the result of an evaluation.
        shared: False if the model itself is sharded. All processes then compute all batches.
    """

    def send(event: Event) -> None:
        if event.type == "warning":
            ctx.send(event)

    quiet = replace(ctx, directory=ctx.work / f"evals-{world.rank}", send=send, bad=Counter())
    for evaluation in evaluations:
        shutil.rmtree(quiet.directory, ignore_errors=True)  # files of the evaluation before, or of an interrupted run
        quiet.directory.mkdir(parents=True)
        scores: Mapping[str, S] = {}
        if not shared:
            with repeating(world):
                scores = evaluate(evaluation, quiet, encoder)
        elif evaluation.in_processes:
            # All processes but the first leave by this exception once their share of the batches is encoded.
            with suppress(LeftToFirst), sharing(world):
                scores = evaluate(evaluation, quiet, encoder)
        elif world.is_main:
            scores = evaluate(evaluation, quiet, encoder)
        if world.is_main:
            yield evaluation, scores
    shutil.rmtree(quiet.directory)
