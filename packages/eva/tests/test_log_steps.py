"""Metrics beside the loss are computed at log steps only; other steps run what a plain twin does, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eva_toy import STUDENT, make_task, random_inputs, run, stage
from vfm.models import build_vision
from vfm.plugin import ClipCheckpoint
from vfm.train import Metrics
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.images import EvaInputs, TeacherInputs
from vfm_eva.targets.phi_s import PhiS
from vfm_eva.targets.teacher import load_teacher
from vfm_kernels import gather_tokens, masked_cosine_loss, masked_index

AT_LOG_STEPS = {"constant_loss", "mutual_cosine"}


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(task: EvaTask, inputs: EvaInputs) -> list[str]:
    """Return the operations of a forward and backward pass."""
    with Operations() as found:
        task(inputs)[0].backward()
    return sorted(found.names)


class Plain(EvaTask):
    """EVA's loss and nothing else, for one teacher."""

    def forward(self, inputs: EvaInputs) -> tuple[Tensor, Metrics]:
        index = masked_index(inputs.bool_mask, self.num_masked)
        counted = inputs.bool_mask.gather(1, index)
        target = gather_tokens(self.teacher.targets(inputs, self.grid), index)
        prediction = self.objectives[0].head(gather_tokens(self.student_tokens(inputs.images, inputs.bool_mask), index))
        return masked_cosine_loss(prediction, target, counted), {"masked_share": inputs.bool_mask.float().mean()}


def test_a_step_without_a_line_runs_the_operations_of_the_loss_alone(teacher: ClipCheckpoint) -> None:
    loaded = load_teacher(teacher, stage().target)
    task, inputs = make_task(loaded), random_inputs()
    plain = Plain(build_vision(STUDENT, num_classes=0, seed=0), loaded, num_masked=task.num_masked).eval()
    plain.load_state_dict(task.state_dict())
    operations(task, inputs), operations(plain, inputs)  # buffers of the first pass are made
    task.is_log_step = False
    assert operations(task, inputs) == operations(plain, inputs)
    assert torch.equal(task(inputs)[0], plain(inputs)[0])
    task.is_log_step = True
    assert len(operations(task, inputs)) > len(operations(plain, inputs)) + 10


def test_losses_of_several_teachers_are_given_in_every_step(teacher: ClipCheckpoint) -> None:
    loaded = load_teacher(teacher, stage().target)
    objectives = [Objective(loaded, name="a"), Objective(loaded, phi_s=PhiS.identity(loaded.width), name="b")]
    task = EvaTask(build_vision(STUDENT, num_classes=0, seed=0), objectives).eval()
    every = {"masked_share", "loss_a", "loss_b"}
    inputs = random_inputs()
    inputs = replace(inputs, others=(TeacherInputs(),))
    found = {}
    for task.is_log_step in (True, False):
        found[task.is_log_step] = task(inputs)[1]
    assert found[False].keys() == every
    assert found[True].keys() == every | {f"{name}_{teacher}" for name in AT_LOG_STEPS for teacher in "ab"}
    assert all(torch.equal(found[True][name], found[False][name]) for name in every)


@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_lines_have_the_values_of_a_training_that_logs_each_step(tmp_path, pool, teacher, micro_batch_size) -> None:
    def lines(log_every: int) -> list[dict[str, float]]:
        folder = tmp_path / str(log_every)
        settings = {"log_every": log_every, "micro_batch_size": micro_batch_size, "mask": {"type": "block"}}
        made = run(folder, settings, pool=pool, teacher=teacher)
        return [json.loads(line) for line in Path(made.path, "metrics.jsonl").read_text().splitlines()]

    each, every_third = lines(1), lines(3)
    assert [line["step"] for line in every_third] == [3, 6]
    for line in every_third:
        step = int(line["step"])
        assert {name: line[f"train/{name}"] for name in AT_LOG_STEPS} == {
            name: each[step - 1][f"train/{name}"] for name in AT_LOG_STEPS
        }
        for name in ("loss", "masked_share", "grad_norm"):
            mean = sum(one[f"train/{name}"] for one in each[step - 3 : step]) / 3
            assert line[f"train/{name}"] == pytest.approx(mean, rel=1e-6)
