"""LAMB against timm's, kept from a NaN as the fused optimisers are, and gone on with to the bit."""

from __future__ import annotations

import pytest
import torch
from timm.optim import Lamb as TimmLamb
from torch import Tensor, nn

from train_toy import Regression, Samples, plan, train
from vfm import Event, UserError
from vfm.train.lamb import Lamb

SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-8}


def parameters() -> list[nn.Parameter]:
    """Of several shapes; one is zero, as a bias is at first."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4, 2), (6,), (4, 4)]
    made = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    nn.init.zeros_(made[3])
    return made


def groups(made: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": made[:2] + made[3:], "weight_decay": 0.1}, {"params": made[2:3], "weight_decay": 0.0}]


def gradients(step: int, made: list[nn.Parameter]) -> None:
    draw = torch.Generator().manual_seed(step + 1)
    for param in made:
        param.grad = torch.randn(param.shape, generator=draw) * 10.0 ** (step % 3 - 1)


def every(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize(("foreach", "beta1"), [(True, 0.9), (False, 0.9), (False, 0.0)])
def test_steps_are_timms(foreach, beta1):
    ours, theirs = parameters(), parameters()
    settings = {**SETTINGS, "betas": (beta1, 0.999)}
    mine = Lamb(groups(ours), 0.02, **settings)
    peer = TimmLamb(groups(theirs), lr=0.02, max_grad_norm=None, foreach=foreach, **settings)
    for step in range(20):
        for made, optimizer in ((ours, mine), (theirs, peer)):
            gradients(step, made)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)  # as a schedule sets it
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [0, 5])
def test_a_step_with_found_inf_changes_no_bit_and_the_next_goes_on_as_if_it_had_not_been(at):
    made, others = parameters(), parameters()
    optimizer, undisturbed = Lamb(groups(made), 0.02, **SETTINGS), Lamb(groups(others), 0.02, **SETTINGS)
    optimizer.found_inf = torch.zeros(())
    for step in range(8):
        if step == at:
            before = [value.clone() for value in (*made, *every(optimizer))]
            for param in made:
                param.grad = torch.full_like(param, float("nan"))
            optimizer.found_inf.fill_(1)
            optimizer.step()
            optimizer.found_inf.fill_(0)
            after = [*made, *every(optimizer)]  # with a state where there was none before the first step
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
        for each, own in ((made, optimizer), (others, undisturbed)):
            gradients(step, each)
            own.step()
    assert all(torch.equal(a, b) for a, b in zip(made, others, strict=True))


def test_the_loop_stops_before_a_nan_reaches_the_weights(tmp_path):
    task, seven = Regression(), plan(optimizer="lamb", schedule="constant", steps=7)
    with pytest.raises(UserError, match="the loss is not finite at step 8"):
        train(tmp_path / "nan", plan(optimizer="lamb", schedule="constant"), task=task, data=Samples(nan=(7, 5)))
    good, *_ = train(tmp_path / "good", seven)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), good.parameters(), strict=True))


def test_a_cut_training_goes_on_to_the_same_bits(tmp_path):
    settings = plan(optimizer="lamb", steps=10, checkpoint={"every_steps": 4})
    whole, *_ = train(tmp_path / "whole", settings)
    with pytest.raises(UserError):
        train(tmp_path / "cut", settings, data=Samples(nan=(6, 0)))
    again, _, events = train(tmp_path / "cut", settings)
    assert "goes on after step 4" in next(event.data["message"] for event in events if is_log(event))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def is_log(event: Event) -> bool:
    return event.type == "log"
