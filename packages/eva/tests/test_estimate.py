"""The estimate of a pre-training's memory is that of the training which then runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eva_toy import context, make_teacher, stage
from vfm.models import get_clip_config
from vfm.plugin import Event, Pool, Preflight
from vfm.train import LiveBytes
from vfm_eva.estimate import eva_pretrain_cost

LARGER = {"model": {"architecture": "eva02_nano_patch4_32", "depth": 4}, "global_batch_size": 32, "steps": 3}


def measured(settings: dict[str, Any], folder: Path, **inputs: Any) -> int:
    """Run the training; return the peak of live bytes in its second step (the first counts operations, too)."""
    counter, peaks = LiveBytes(), [0]

    def listen(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 1:
            counter.peak = counter.now
        if event.type == "metrics" and event.data["step"] == 2:
            peaks.append(counter.peak)

    with counter:
        stage(**settings).run(context(folder, listen, **inputs))
    return peaks[-1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"grad_checkpointing": True}, {"micro_batch_size": 16, "precision": "amp_bf16", "ema_decay": 0.9}],
    ids=["plain", "checkpointing", "micro-batches"],
)
def test_memory_is_within_15_percent_of_what_a_training_takes(
    settings: dict[str, Any], tmp_path: Path, pool: Pool
) -> None:
    config = get_clip_config("ViT-Pico-8-32")
    text = {**config["text_cfg"], "vocab_size": 64}  # a small text tower, which is never moved to the device
    teacher = make_teacher(tmp_path / "teacher", {**config, "text_cfg": text})
    cost = eva_pretrain_cost(stage(**LARGER, **settings), Preflight({}, {"pool": pool.path, "teacher": teacher.path}))
    assert cost.memory
    peak = measured({**LARGER, **settings}, tmp_path / "run", pool=pool, teacher=teacher)
    assert cost.memory.activations > 0.2 * peak
    assert cost.memory.total == pytest.approx(peak, rel=0.15)


def test_a_teacher_that_is_not_known_yet_is_unknown() -> None:
    assert eva_pretrain_cost(stage(), Preflight({}, {})).unknown == ("the teacher teacher",)
