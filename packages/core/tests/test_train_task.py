"""A task's defaults: weight decay, frozen models, and the accumulation of micro-batches."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from train_toy import Regression, Samples, plan, train
from vfm.data import Batch, map_tensors
from vfm.plugin import AdamW, UserError
from vfm.train import Frozen, ParamGroup, Task, build_optimizer
from vfm.train.optim.state import model_tensors


class Probe(Task):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = Frozen(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
        self.head = nn.Linear(3, 1)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs):
        return (self.logit_scale * self.head(self.teacher(inputs.x)) - inputs.y).square().mean(), {}


class Vision(Task):
    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)

    def forward(self, inputs):
        raise AssertionError


def test_biases_norms_scalars_and_timms_exceptions_are_not_decayed():
    task = Vision()
    decayed, plain = task.parameter_groups()
    names = {id(param): name for name, param in task.named_parameters()}
    assert "vit.pos_embed" in {names[id(param)] for param in plain.params}
    assert "vit.cls_token" in {names[id(param)] for param in plain.params}
    assert all(param.ndim > 1 for param in decayed.params)
    assert (decayed.weight_decay, plain.weight_decay) == (None, 0.0)
    assert len(decayed.params) + len(plain.params) == len(names)


def test_frozen_model_moves_with_the_task_but_is_neither_saved_nor_trained(tmp_path):
    task = Probe()
    before = [param.clone() for param in task.teacher.module.parameters()]
    assert set(model_tensors(task)) == {"head.weight", "head.bias", "logit_scale"}
    assert task.double().teacher.module[0].weight.dtype == torch.float64
    task.float().train()
    train(tmp_path, plan(), task=task)
    assert not task.teacher.module.training
    assert all(torch.equal(a, b) for a, b in zip(before, task.teacher.module.parameters(), strict=True))


def test_gradients_flow_through_a_frozen_model_to_its_input():
    frozen = Frozen(nn.Linear(2, 1))
    x = torch.ones(1, 2, requires_grad=True)
    frozen(x).sum().backward()
    assert x.grad is not None
    assert frozen.module.weight.grad is None


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 8])
def test_accumulated_gradients_equal_those_of_the_whole_batch_also_for_uneven_micro_batches(micro_batch_size):
    grads, losses = [], []
    for size in (8, micro_batch_size):
        task = Regression().double()
        (micro,) = Samples().steps(0, 1, rank=0, world_size=1, micro_batch_size=size)
        micro = [Batch(map_tensors(batch.inputs, torch.Tensor.double), batch.keys) for batch in micro]
        metrics = task.accumulate(
            lambda batch, task=task: task(batch.inputs), micro, torch.autograd.backward, lambda index: None
        )
        grads.append([param.grad for param in task.parameters()])
        losses.append(metrics["loss"])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


class Cached(Regression):
    """A task that runs all micro-batches without gradients first, then each again, as cached contrastive losses do."""

    def accumulate(self, call, micro_batches, backward, reseed):
        with torch.no_grad():
            first = []
            for index, batch in enumerate(micro_batches):
                reseed(index)
                first.append(call(batch)[0])
        replayed = []
        for index, batch in enumerate(micro_batches):
            reseed(index)
            replayed.append(call(batch)[0])
            backward(replayed[-1] / len(micro_batches))
        assert torch.equal(torch.stack(first), torch.stack(replayed).detach())
        return {"loss": torch.stack(first).mean(), "guess": first[0]}


def test_micro_batches_can_be_replayed_with_the_same_dropout(tmp_path):
    replayed, *_ = train(tmp_path / "a", plan(micro_batch_size=2), task=Cached(dropout=0.5))
    straight, *_ = train(tmp_path / "b", plan(micro_batch_size=2), task=Regression(dropout=0.5))
    assert all(torch.allclose(a, b) for a, b in zip(replayed.parameters(), straight.parameters(), strict=True))


def test_missing_and_foreign_parameters_in_groups_are_refused():
    class Forgetful(Regression):
        def parameter_groups(self):
            return [ParamGroup(list(self.net[0].parameters()))]

    class Greedy(Probe):
        def parameter_groups(self):
            return [ParamGroup([*self.parameters(), *self.teacher.module.parameters()])]

    with pytest.raises(ValueError, match=r"Forgetful.*leaves out net"):
        build_optimizer(Forgetful(), AdamW(), 0.1)
    with pytest.raises(ValueError, match="parameters that the task does not own"):
        build_optimizer(Greedy(), AdamW(), 0.1)


def test_before_step_is_called_with_each_step_also_after_resuming(tmp_path):
    class Counting(Regression):
        def before_step(self, step):
            steps.append(step)

    steps: list[int] = []
    settings = plan(steps=8, checkpoint={"every_steps": 3})
    with pytest.raises(UserError):
        train(tmp_path, settings, task=Counting(), data=Samples(nan=(4, 0)))
    assert steps == [0, 1, 2, 3, 4]
    train(tmp_path, settings, task=Counting())
    assert steps[5:] == [3, 4, 5, 6, 7]
