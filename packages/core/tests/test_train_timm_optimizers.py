"""Each of timm's optimizers that is offered steps as timm's own, resumes exactly, and keeps a NaN out."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from timm.optim import create_optimizer_v2

from train_toy import Regression, Samples, plan, train
from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.flow.plan.preflight import preflight
from vfm.flow.plan.store import Slot
from vfm.interfaces import AdamW, LambConfig, Sgd
from vfm.interfaces.timm_optimizer import Algorithm
from vfm.plugin import TimmOptimizer
from vfm.train import build_optimizer
from vfm.train.optim.optim import check_optimizer, step_if_finite

ALGORITHMS = get_args(Algorithm)


def timm_plan(algorithm: str, **changes):
    return plan(steps=6, log_every=1, lr=0.01).model_copy(
        update={"optimizer": TimmOptimizer(algorithm=algorithm, **changes)}
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_that_was_cut_off_ends_with_the_same_bits(tmp_path, algorithm):
    settings = timm_plan(algorithm)
    whole, *_ = train(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path / "cut",
            settings.model_copy(update={"checkpoint": plan(checkpoint={"every_steps": 2}).checkpoint}),
            data=Samples(stop=5),
        )
    resumed, *_ = train(tmp_path / "cut", settings)
    before = Regression()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
        assert not torch.equal(value, before.state_dict()[name])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_equals_that_of_timms_factory_and_one_that_is_not_finite_changes_nothing(algorithm):
    ours, theirs = Regression(), Regression()
    mine = build_optimizer(ours, TimmOptimizer(algorithm=algorithm, weight_decay=0.1), 0.01)
    decayed = [param for param in theirs.parameters() if param.ndim > 1]
    plain = [param for param in theirs.parameters() if param.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    peer = create_optimizer_v2(groups, algorithm, lr=0.01)
    for step in range(3):
        for task, optimizer in ((ours, mine), (theirs, peer)):
            optimizer.zero_grad()
            task(Samples().batch(step, range(8)).inputs)[0].backward()
            step_if_finite(optimizer, torch.zeros(())) if task is ours else optimizer.step()
        step_if_finite(mine, torch.ones(()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_finite_stops_the_training_before_it_is_taken(tmp_path):
    with pytest.raises(UserError, match="the loss is not finite at step 4"):
        train(tmp_path, timm_plan("muon"), data=Samples(nan=(3, 2)))


@pytest.mark.parametrize(
    ("algorithm", "options", "line"),
    [
        ("lion", {"momentums": 0.9}, r"optimizer\.options: timm's lion: .*momentums"),
        ("lion", {"momentum": 0.3}, r"optimizer\.options: timm's lion: expected betas, .*, foreach, got momentum$"),
        ("clion", {"eps": 1e-6}, r"optimizer\.options: timm's clion: expected betas, .*, foreach, got eps$"),
        ("muon", {"layer_decay": 0.7, "weight_decay": 1.0}, "optimizer.options: .*, got layer_decay, weight_decay$"),
        ("lion", {"betas": [0.9]}, r"optimizer\.options: timm's lion: list index out of range"),
        (
            "muon",
            {"betas": 0.9},
            r"optimizer: muon cannot take a step with these settings: cannot unpack non-iterable float",
        ),
        ("adafactorbv", {"momentum_dtype": "half"}, "optimizer.options: timm's adafactorbv: half dtype not supported"),
        ("lars", {"eps": "small"}, r"optimizer: lars cannot take a step with these settings: unsupported operand"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line_before_anything_runs(tmp_path, algorithm, options, line):
    stage = timm_plan(algorithm, options=options)
    slot = Slot(tmp_path, "toy-00000000")
    with pytest.raises(UserError, match=f"^toy: {line}"):
        preflight([Step(stage, identity="0" * 64, inputs={}, folders={}, fingerprints={}, slot=slot)])


@pytest.mark.parametrize(
    "optimizer", [AdamW(), LambConfig(), Sgd(), *(TimmOptimizer(algorithm=name) for name in ALGORITHMS)]
)
def test_optimizers_pass_their_check(optimizer):
    check_optimizer(optimizer)
