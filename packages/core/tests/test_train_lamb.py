"""LAMB must agree with timm's, skip steps with NaN as the fused optimisers do, and resume exactly."""

from __future__ import annotations

import pytest
import torch
from timm.optim import Lamb as TimmLamb
from torch import Tensor, nn

from train_toy import Regression, Samples, plan, train
from vfm import Event, UserError
from vfm.train.optim.lamb import Lamb

SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-8}


def parameters() -> list[nn.Parameter]:
    """Return parameters of several shapes; one is zero, like an initial bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4, 2), (6,), (4, 4)]
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    nn.init.zeros_(params[3])
    return params


def groups(params: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": params[:2] + params[3:], "weight_decay": 0.1}, {"params": params[2:3], "weight_decay": 0.0}]


def set_gradients(step: int, params: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * 10.0 ** (step % 3 - 1)


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize(("foreach", "beta1"), [(True, 0.9), (False, 0.9), (False, 0.0)])
def test_steps_equal_timms(foreach, beta1):
    ours, theirs = parameters(), parameters()
    settings = {**SETTINGS, "betas": (beta1, 0.999)}
    mine = Lamb(groups(ours), 0.02, **settings)
    peer = TimmLamb(groups(theirs), lr=0.02, max_grad_norm=None, foreach=foreach, **settings)
    for step in range(20):
        for params, optimizer in ((ours, mine), (theirs, peer)):
            set_gradients(step, params)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)  # as a schedule sets it
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [0, 5])
def test_step_with_found_inf_changes_nothing_and_the_next_steps_are_as_without_it(at):
    params, others = parameters(), parameters()
    optimizer, undisturbed = Lamb(groups(params), 0.02, **SETTINGS), Lamb(groups(others), 0.02, **SETTINGS)
    optimizer.found_inf = torch.zeros(())
    for step in range(8):
        if step == at:
            before = [value.clone() for value in (*params, *state_tensors(optimizer))]
            for param in params:
                param.grad = torch.full_like(param, float("nan"))
            optimizer.found_inf.fill_(1)
            optimizer.step()
            optimizer.found_inf.fill_(0)
            after = [*params, *state_tensors(optimizer)]  # before the first step there is no state yet
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
        for some_params, some_optimizer in ((params, optimizer), (others, undisturbed)):
            set_gradients(step, some_params)
            some_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_loop_stops_before_a_nan_reaches_the_weights(tmp_path):
    task, seven = Regression(), plan(optimizer="lamb", schedule="constant", steps=7)
    with pytest.raises(UserError, match="the loss is not finite at step 8"):
        train(tmp_path / "nan", plan(optimizer="lamb", schedule="constant"), task=task, data=Samples(nan=(7, 5)))
    good, *_ = train(tmp_path / "good", seven)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), good.parameters(), strict=True))


def test_interrupted_training_resumes_exactly(tmp_path):
    settings = plan(optimizer="lamb", steps=10, checkpoint={"every_steps": 4})
    whole, *_ = train(tmp_path / "whole", settings)
    with pytest.raises(UserError):
        train(tmp_path / "cut", settings, data=Samples(nan=(6, 0)))
    resumed, _, events = train(tmp_path / "cut", settings)
    assert "resumes after step 4" in next(event.data["message"] for event in events if is_log(event))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def is_log(event: Event) -> bool:
    return event.type == "log"
