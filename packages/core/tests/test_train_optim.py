"""Schedules equal their formulas, the average its closed form, and every setting of a training has an effect."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from train_toy import Plan, Regression, Samples, plan, train
from vfm.plugin import AdamW, PolySchedule, StepSchedule, UserError
from vfm.train import Ema, ParamGroup, build_optimizer, set_lr
from vfm.train.parallel.dist import DistributedWorld, micro_batch_size


def lr_at(step: int, p: Plan) -> float:
    return p.schedule.build(p.lr, p.num_steps)(step)


def test_cosine_equals_open_clips_formula():
    p = plan(steps=10, lr=1.0, warmup_steps=2)
    expected = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert [lr_at(step, p) for step in range(10)] == pytest.approx(expected)


def test_constant_stays_after_the_warm_up_and_cosine_keeps_min_lr():
    constant = plan(steps=10, lr=1.0, warmup_steps=4, schedule="constant")
    assert [lr_at(step, constant) for step in range(10)] == [0.25, 0.5, 0.75] + [1.0] * 7
    assert lr_at(10, plan(steps=10, lr=1.0, min_lr=0.1)) == pytest.approx(0.1)


def test_steps_divide_the_rate_by_10_after_shares_of_the_training():
    rate = StepSchedule(warmup_steps=4).build(1.0, 100)
    assert [rate(step) for step in (0, 3, 79, 80, 90)] == pytest.approx([0.25, 1.0, 1.0, 0.1, 0.01])


def test_poly_equals_mmsegmentations_formula():
    rate = PolySchedule(power=1.0, warmup_steps=10).build(2.0, 110)
    assert rate(0) == pytest.approx(0.2)
    assert rate(9) == rate(10) == 2.0
    assert rate(60) == pytest.approx(1.0)
    assert PolySchedule(power=0.9).build(1.0, 100)(50) == pytest.approx(0.5**0.9)


@pytest.mark.parametrize("name", ["steps", "poly"])
def test_a_training_takes_its_schedule_from_core_without_a_plugin(name):
    training = Plan.model_validate({"name": "p", "steps": 9, "schedule": {"type": name, "warmup_steps": 2}})
    assert type(training.schedule).__module__ == "vfm.interfaces.schedules"
    assert 0 < lr_at(8, training) < training.lr


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), fraction=st.floats(0, 1))
def test_rate_stays_between_min_lr_and_lr_after_the_warm_up(steps, warmup, fraction):
    p = plan(steps=steps, warmup_steps=warmup, lr=0.5, min_lr=0.5 * fraction)
    rates = [lr_at(step, p) for step in range(steps)]
    assert all(0.5 * fraction - 1e-12 <= rate <= 0.5 for rate in rates[warmup:])
    assert all(0 < rate <= 0.5 for rate in rates)


def test_ema_equals_its_closed_form():
    task, decay = Regression(), 0.75
    ema = Ema(task, decay)
    history = [task.net[0].weight.detach().clone()]
    for step in range(6):
        with torch.no_grad():
            task.net[0].weight.add_(torch.randn(16, 4, generator=torch.Generator().manual_seed(step)))
        ema.update(step)
        history.append(task.net[0].weight.detach().clone())
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(6)]
    weights = [(1 - d) * math.prod(decays[step + 1 :]) for step, d in enumerate(decays)]
    closed = math.prod(decays) * history[0] + sum(w * h for w, h in zip(weights, history[1:], strict=True))
    torch.testing.assert_close(ema.average["net.0.weight"], closed)


@pytest.mark.parametrize(("num_steps", "decay"), [(100, 0.99), (1000, 0.999), (300, 0.9999)])
def test_average_of_a_short_training_keeps_little_of_the_initial_weights(num_steps, decay):
    remainder = math.prod(min(decay, (1 + step) / (10 + step)) for step in range(num_steps))
    task = nn.Linear(1, 1, bias=False)
    nn.init.ones_(task.weight)
    ema = Ema(task, decay)
    nn.init.zeros_(task.weight)
    for step in range(num_steps):
        ema.update(step)
    assert float(ema.average["weight"]) == pytest.approx(remainder, rel=1e-3)
    assert remainder < 1e-3


def test_fit_ends_with_the_average_of_all_weights(tmp_path):
    visited = []

    class Recording(Regression):
        def after_step(self):
            visited.append(self.net[0].weight.detach().clone())

    task = Recording()
    average = task.net[0].weight.detach().clone()
    train(tmp_path, plan(ema_decay=0.8), task=task)
    for step, weights in enumerate(visited):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(task.net[0].weight.detach(), average)


def test_lr_scale_and_weight_decay_of_a_group_reach_the_optimizer():
    class Scaled(Regression):
        def parameter_groups(self):
            return [
                ParamGroup(list(self.net[0].parameters()), lr_scale=0.5, weight_decay=0.3),
                ParamGroup(list(self.net[-1].parameters())),
            ]

    optimizer = build_optimizer(Scaled(), AdamW(weight_decay=0.01), 0.05)
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.01]


OPTIONS = {
    "steps": 6,
    "global_batch_size": 4,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 0.5,
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "schedule": "constant",
    "warmup_steps": 7,
    "min_lr": 0.04,
    "grad_clip_norm": 0.01,
    "ema_decay": 0.5,
    "precision": "amp_bf16",
    "seed": 1,
}


def final_weights(folder, **changes):
    task, *_ = train(folder, plan(**changes), task=Regression(dropout=0.1))
    return torch.cat([param.detach().flatten() for param in task.parameters()])


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_result(tmp_path, option):
    default = final_weights(tmp_path / "default")
    assert torch.equal(default, final_weights(tmp_path / "again"))
    assert not torch.equal(default, final_weights(tmp_path / "changed", **{option: OPTIONS[option]}))


def test_momentum_changes_sgd(tmp_path):
    slow, fast = (final_weights(tmp_path / str(m), optimizer="sgd", momentum=m) for m in (0.0, 0.9))
    assert not torch.equal(slow, fast)


def test_samples_seen_sets_the_number_of_steps(tmp_path):
    _, _, events = train(tmp_path, plan(steps=None, samples_seen=48))
    assert [event.data["step"] for event in events if event.type == "metrics"] == [4, 6]


def test_micro_batches_change_the_weights_only_by_rounding(tmp_path):
    whole, parts = (
        train(tmp_path / str(size), plan(micro_batch_size=size, grad_clip_norm=0.1))[0] for size in (None, 2)
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_is_clipped_to_the_norm_and_logged_before_clipping(tmp_path):
    """With plain SGD and lr 1, the norm of a step is that of the clipped gradient."""
    task = Regression()
    before = [param.detach().clone() for param in task.parameters()]
    settings = {"steps": 1, "optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "warmup_steps": 0, "weight_decay": 0.0}
    train(tmp_path, plan(**settings, grad_clip_norm=0.02), task=task)
    moved = [(a - b).detach() for a, b in zip(task.parameters(), before, strict=True)]
    assert float(torch.cat([d.flatten() for d in moved]).norm()) == pytest.approx(0.02, rel=1e-3)
    line = json.loads((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["train/grad_norm"] > 0.02


def test_batch_that_is_no_multiple_of_the_processes_is_refused(monkeypatch):
    with pytest.raises(UserError, match="global_batch_size must be a multiple of the 3 processes, got 8"):
        micro_batch_size(plan(), DistributedWorld(torch.device("cpu"), 0, 3))


def test_bf16_loss_is_close_to_the_fp32_loss(tmp_path):
    def last_loss(precision):
        train(tmp_path / precision, plan(precision=precision, steps=40, log_every=40), data=Samples())
        return json.loads((tmp_path / precision / "part" / "metrics.jsonl").read_text())["train/loss"]

    assert last_loss("amp_bf16") == pytest.approx(last_loss("fp32"), rel=0.05)
