"""The estimate of a training's memory and operations is that of the training which then runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clip_world import EVA, VIT, Random, plan, tiny_task, train
from vfm.data import Batch
from vfm.plugin import Preflight
from vfm.train import LiveBytes
from vfm_clip.estimate import clip_train_cost

LARGER = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "image_size": 32, "width": 64, "layers": 4, "patch_size": 4}}


class Watched(Random):
    """Random samples; it notes the peak of live bytes in the second step (the first counts operations, too)."""

    counter: LiveBytes
    peak = 0

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[list[Batch[Any]]]:
        for number, step in enumerate(super().steps(*args, **kwargs)):
            if number == 1:
                self.counter.peak = self.counter.now
            if number == 2:
                self.peak = self.counter.peak
            yield step


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (VIT, {}),
        (EVA, {"ema_decay": 0.9}),
        (LARGER, {"precision": "amp_bf16"}),
        (LARGER, {"micro_batch_size": 16}),
        (LARGER, {"grad_checkpointing": True}),
        (LARGER, {"loss": {"type": "siglip"}, "optimizer": {"type": "sgd"}}),
    ],
    ids=["vit", "eva", "bf16", "micro-batches", "checkpointing", "siglip"],
)
def test_memory_is_within_15_percent_of_what_a_training_takes(
    config: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    stage = plan(model=config, steps=3, global_batch_size=64, **settings)
    cost = clip_train_cost(stage, Preflight({}, {}))
    assert cost.memory
    assert cost.memory.activations > 0
    task = tiny_task(config, stage.loss.type)
    if stage.grad_checkpointing:
        task.module.set_grad_checkpointing()
    data = Watched(config, stage.global_batch_size)
    data.counter = counter = LiveBytes()
    with counter:
        counter.hold([*task.parameters(), *task.buffers()])
        train(tmp_path, stage, task, data)
    assert cost.memory.total == pytest.approx(data.peak, rel=0.15)
    assert cost.parameters == sum(parameter.numel() for parameter in task.parameters())


def test_operations_are_those_that_torch_counts() -> None:
    stage = plan(model=VIT, steps=3, global_batch_size=8)
    cost, task = clip_train_cost(stage, Preflight({}, {})), tiny_task(VIT)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # torch counts no other on a CPU
        task.train()(Random(VIT, 8).batch(0).inputs)[0].backward()
    assert cost.flops == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


def test_a_model_that_is_not_known_yet_is_unknown() -> None:
    stage = plan(model=None, init="start")
    assert clip_train_cost(stage, Preflight({}, {})).unknown == ("the model of start",)
