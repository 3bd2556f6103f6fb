"""Frozen models are rounded to bf16 once: the step stays the same, bit for bit, and casts no weight again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diva_toy import context, tune_config
from vfm.plugin import ClipCheckpoint, Pool
from vfm.train.optim.precision import Numerics
from vfm_diva.tune.tune import build_data, build_task


class Casts(TorchDispatchMode):
    """Counts the copies of some tensors in another type."""

    def __init__(self, of: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.of, self.count = {tensor.data_ptr() for tensor in of}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.of
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["stable_diffusion", "prior"])
def test_frozen_matrices_in_bf16_give_the_same_step_and_are_not_cast_again(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, pool: Pool, clip: ClipCheckpoint
) -> None:
    generator = request.getfixturevalue(name)
    parts = {"condition": {"type": "embedding"}, "adapter": {"type": "linear"}} if name == "stable_diffusion" else {}
    config = tune_config(precision="amp_bf16", **parts)
    ctx = context(config, tmp_path, clip=clip, prior=generator, pool=pool)

    def step(rounds: bool) -> tuple[int, list[torch.Tensor]]:
        task = build_task(config, ctx)
        (batch,) = next(build_data(config, ctx, task).steps(0, 1))
        held = [one.module for one in task.frozen() if one.steps_only]
        numerics = Numerics("amp_bf16", task, torch.device("cpu"), held if rounds else ())
        layers = [layer for one in held for layer in one.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        torch.manual_seed(0)
        with Casts(layer.weight for layer in layers) as casts, numerics.autocast():
            loss, _ = task(batch.inputs)
        loss.backward()
        return casts.count, [loss.detach(), *(param.grad for param in task.parameters() if param.grad is not None)]

    (before, plain), (after, rounded) = step(False), step(True)
    assert before > 0
    assert after == 0
    assert len(plain) > 1
    assert all(map(torch.equal, plain, rounded))
