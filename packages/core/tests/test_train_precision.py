"""fp16's factor equals torch's GradScaler, bf16's weights lose no small steps, and both resume exactly."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from train_toy import Regression, Samples, plan, train
from vfm.base import UserError
from vfm.interfaces import Runtime
from vfm.train.optim.precision import FullWeights, LossScale, Numerics, resolve_precision
from vfm.train.parallel.dist import distributed, tf32

CPU = torch.device("cpu")


def test_factor_and_weights_equal_those_of_torchs_scaler():
    ours, theirs = nn.Linear(4, 1), nn.Linear(4, 1)
    theirs.load_state_dict(ours.state_dict())
    mine, other = (torch.optim.AdamW(module.parameters(), lr=0.01) for module in (ours, theirs))
    scale = LossScale(CPU, initial=2.0**16, interval=3)
    peer = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    for step in range(12):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        damage = float("inf") if step in (0, 1, 6) else 1.0  # an infinite gradient
        for module, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            loss = module(x).square().mean()
            (loss * scale.factor if module is ours else peer.scale(loss)).backward()
            module.weight.grad.mul_(damage)
        grads = [param.grad for param in ours.parameters()]
        scale.unscale(grads)
        overflow = scale.overflow(torch.stack([grad.norm() for grad in grads]).norm())
        if not overflow:
            mine.step()
        scale.update(overflow)
        peer.step(other)
        peer.update()
        assert float(scale.factor) == peer.get_scale()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_infinite_gradients_at_a_factor_of_one_are_those_of_the_model():
    scale = LossScale(CPU, initial=1.0)
    assert not scale.overflow(torch.tensor(float("inf")))
    assert LossScale(CPU, initial=2.0).overflow(torch.tensor(float("nan")))


def test_auto_is_fp32_without_a_cuda_device():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("amp_fp16", CPU) == "amp_fp16"


def test_small_steps_change_fp32_weights_that_bf16_would_lose():
    module = nn.Linear(4, 4, bias=False)
    nn.init.ones_(module.weight)
    full = FullWeights(module)
    assert module.weight.dtype == torch.bfloat16
    for _ in range(64):
        module.weight.grad = torch.ones_like(module.weight)
        with full.in_place():
            module.weight.data -= 1e-3 * module.weight.grad  # bf16 next to 1 changes by 4e-3 at least
    full.end()
    torch.testing.assert_close(module.weight.detach(), torch.full((4, 4), 1 - 0.064))


@pytest.mark.parametrize("precision", ["amp_fp16", "bf16"])
def test_losses_are_close_to_those_of_fp32_and_a_cut_off_training_ends_with_the_same_bits(tmp_path, precision):
    settings = {"steps": 24, "log_every": 1, "ema_decay": 0.8, "checkpoint": {"every_steps": 5}}
    exact, *_ = train(tmp_path / "fp32", plan(precision="fp32", **settings))
    whole, *_ = train(tmp_path / "whole", plan(precision=precision, **settings))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", plan(precision=precision, **settings), data=Samples(stop=13))
    resumed, *_ = train(tmp_path / "cut", plan(precision=precision, **settings))
    for name, value in whole.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, resumed.state_dict()[name]), name
    lines = [
        [
            json.loads(line)["train/loss"]
            for line in (tmp_path / name / "part" / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("fp32", "whole", "cut")
    ]
    assert lines[1] == lines[2]
    assert lines[1][0] == pytest.approx(lines[0][0], rel=0.01)
    assert lines[1][-1] < 0.5 * lines[1][0]
    assert not torch.equal(exact.net[0].weight, whole.net[0].weight)


def test_fp16_halves_its_factor_instead_of_stopping_and_still_stops_at_a_nan(tmp_path):
    numerics = Numerics("amp_fp16", Regression(), CPU)
    flag = numerics.skips(torch.zeros(()), torch.tensor(float("inf")))
    assert (float(flag), float(numerics.scale.factor)) == (1.0, 2.0**15)
    assert float(numerics.skips(torch.zeros(()), torch.tensor(1.0))) == 0.0
    with pytest.raises(UserError, match="the loss is not finite at step 3"):
        train(tmp_path, plan(precision="amp_fp16"), data=Samples(nan=(2, 1)))


def test_only_trainings_round_fp32_products_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with distributed(Runtime(device="cuda")) as world:  # as evaluations do
        assert torch.get_float32_matmul_precision() == "highest"
        with tf32(world.device):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "highest"


def test_frozen_matrices_are_rounded_once_and_come_back():
    held = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2), nn.LayerNorm(2))
    before = [param.clone() for param in held.parameters()]
    x = torch.randn(2, 3, 3, 3)
    plain = Numerics("amp_bf16", nn.Linear(1, 1), CPU)
    with plain.autocast():
        expected = held(x)
    rounded = Numerics("amp_bf16", nn.Linear(1, 1), CPU, [held])
    assert [param.dtype for param in held.parameters()] == [torch.bfloat16] * 4 + [torch.float32] * 2
    with rounded.autocast():
        assert torch.equal(held(x), expected)
    rounded.end()
    assert all(torch.equal(param, old) for param, old in zip(held.parameters(), before, strict=True))
