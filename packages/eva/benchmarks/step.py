"""Measure an optimizer step of vfm's loop, the plain timm loop and the teacher alone, alternately on equal batches."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from bench import CUDA, Bench, clock, context, pretrain
from plain_loop import PlainLoop

from vfm.data import Batch, TrainingData, open_dataset
from vfm.train import fit
from vfm_eva import BlockMask
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.targets.images import EvaInputs, MakeViews, crop_transform

WARM_UP = 3  # steps that are not counted


class InTurn:
    """Yields the same batches again and again. After each step of the loop, the other contestants take their step.

    Other work on the machine then affects all of them equally.
    """

    def __init__(
        self, batches: list[Batch[EvaInputs]], others: Mapping[str, Callable[[Batch[EvaInputs]], Any]]
    ) -> None:
        self.batches, self.others = batches, others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("vfm", *others)}

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch[EvaInputs]]]:
        for batch in itertools.islice(itertools.cycle(self.batches), num_steps - start_step):
            start = clock()
            yield [batch]
            self.seconds["vfm"].append(clock() - start)
            for name, other in self.others.items():
                start = clock()
                other(batch)
                self.seconds[name].append(clock() - start)


class Step(Bench):
    """Measures the steps of the contestants."""

    def measure(self) -> dict[str, float]:
        """Measure a step of vfm and of the plain loop on the same batches from the same weights."""
        device = "cuda" if CUDA else "cpu"
        config = pretrain(
            self.rounds * self.steps, self.batch, log_every=self.rounds * self.steps - 1, teacher_precision="fp32"
        )
        task = self.task(config)
        plain, losses = self._plain(copy.deepcopy(task).to(device)), list[float]()
        task.teacher.module.to(device)
        others: dict[str, Callable[[Batch[EvaInputs]], Any]] = {
            "plain": lambda batch: losses.append(plain.step(batch.inputs)),
            "teacher": lambda batch: task.teacher.targets(batch.inputs, task.grid),
        }
        data = InTurn([batch.to(torch.device(device)) for batch in self._batches(task, 4)], others)
        ctx = context(self.folder())
        fit(task, data, config, ctx)
        line = (ctx.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
        counted = {name: values[WARM_UP:] for name, values in data.seconds.items()}
        medians = {name: 1e3 * statistics.median(values) for name, values in counted.items()}
        ratios = [ours / theirs for ours, theirs in zip(counted["vfm"], counted["plain"], strict=True)]
        return {
            "vfm, ms": medians["vfm"],
            "plain timm loop, ms": medians["plain"],
            "vfm / plain, median": statistics.median(ratios),
            "teacher's share": medians["teacher"] / medians["vfm"],
            "mean losses apart": abs(json.loads(line)["train/loss"] - statistics.mean(losses)),
        }

    def _plain(self, task: Any) -> PlainLoop:
        visual = task.teacher.module
        visual.output_tokens = True
        pixels = (task.preprocess.pixels, task.teacher.preprocess.pixels)
        return PlainLoop(task.student.train(), task.objectives[0].head, task.mask_token, visual, pixels)

    def _batches(self, task: Any, count: int) -> list[Batch[EvaInputs]]:
        make = MakeViews(*(crop_transform((0.2, 1.0), 0.5, model.preprocess) for model in (task, task.teacher)))
        data = TrainingData(open_dataset(self.pool), make, global_batch_size=self.batch)
        masks = Masks(BlockMask(), task.grid, task.num_masked)
        steps = MaskedData(data, masks).steps(0, count, micro_batch_size=self.batch)
        return [batch for (batch,) in steps]
