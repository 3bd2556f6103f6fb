"""The encoder's own warm-up in `eva.segment`: EoMT's rates step by step, and weights that wait for the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eva_toy import context
from vfm.data.synthetic.stages import ShapesScenes
from vfm.models import build_vision, load_state_dict, save_vision
from vfm.plugin import AdamW, AnnotatedImages, VisionCheckpoint
from vfm.train import build_optimizer, set_lr
from vfm_eva.dense.segment.model import HeadRecord, build_segmenter
from vfm_eva.dense.segment.stages import EvaSegment
from vfm_eva.dense.segment.task import SegmentTask
from vfm_eva.dense.segment.train import encoder_rate

ENCODER = "eva02_pico_patch8_32"
HEAD = {"type": "queries", "num_queries": 4, "num_blocks": 1, "loss": {"num_points": 32}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnnotatedImages | VisionCheckpoint]:
    folder = tmp_path_factory.mktemp("inputs")
    world = {"image_size": 32, "shapes": ["circle", "square"]}
    scenes = ShapesScenes.model_validate({"name": "scenes", "num_samples": 8, "max_objects": 2, "world": world})
    encoder = save_vision(build_vision(ENCODER, num_classes=0, seed=0), folder / "encoder")
    return {"encoder": encoder, "scenes": scenes.run(context(folder / "scenes"))}  # type: ignore[dict-item]


def stage(**changes: Any) -> EvaSegment:
    settings = {
        "name": "segment", "encoder": "encoder", "data": "scenes", "head": HEAD, "global_batch_size": 4,
        "log_every": 1, "runtime": {"device": "cpu"},
    }  # fmt: skip
    return EvaSegment.model_validate(settings | changes)


def plain_rate(step: int, steps: int, wait: int, warmup: int, lr: float, power: float) -> float:
    """Return the rate of weights that wait, rise over the warm-up, and fall to 0: once for head and for encoder."""
    if step < wait:
        return 0.0
    if step < wait + warmup:
        return lr * (step - wait + 1) / warmup
    return lr * ((steps - step) / (steps - wait - warmup)) ** power  # type: ignore[no-any-return]


def test_rates_are_those_of_two_plain_schedules_times_layer_decay() -> None:
    schedule = {"type": "poly", "warmup_steps": 5, "power": 0.9}
    config = stage(steps=60, lr=0.1, trained={"layer_decay": 0.5}, schedule=schedule, encoder_warmup_steps=10)
    model = build_segmenter(config, build_vision(ENCODER, num_classes=0, seed=0), 3)
    record = HeadRecord(config.head.model_dump(mode="json"), "semantic", False, [True] * 3)
    rate = encoder_rate(config)
    task = SegmentTask(model, record, ["a", "b", "c"], num_steps=60, trained=config.trained, encoder_rate=rate)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    optimizer = build_optimizer(task, AdamW(), config.lr)
    scheduled = config.schedule.build(config.lr, 60)
    depth, seen = model.encoder.depth, set()
    for step in range(60):
        set_lr(optimizer, scheduled(step), step)
        for group in optimizer.param_groups:
            for name in (names[id(parameter)] for parameter in group["params"]):
                of_encoder = name.startswith("model.encoder.")
                wait, warmup = (5, 10) if of_encoder else (0, 5)
                block = name.partition("blocks.")[2].partition(".")[0]
                first = any(part in name for part in ("patch_embed", "pos_embed", "cls_token"))
                below = depth - int(block) if block else depth + 1 if first else 0
                expected = 0.5**below * plain_rate(step, 60, wait, warmup, 0.1, 0.9)
                assert group["lr"] == pytest.approx(expected, abs=1e-12), (name, step)
                seen.add((of_encoder, below))
    assert seen == {(False, 0), (True, 0), (True, 1), (True, 2), (True, 3)}  # the final norm is the encoder's


def test_the_encoder_waits_while_the_head_warms_up(inputs: dict[str, Any], tmp_path: Path) -> None:
    def trained(steps: int, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        config = stage(steps=steps, lr=1e-3, schedule={"type": "poly", "warmup_steps": 3}, **changes)
        made: Any = config.run(context(tmp_path / f"{steps}{changes}", **inputs))
        return (
            load_state_dict(made.path / made.encoder / "model.safetensors"),
            load_state_dict(made.path / "head.safetensors"),
        )

    start = load_state_dict(inputs["encoder"].path / "model.safetensors")
    settings = {"encoder_warmup_steps": 2, "skip_steps": [4, 5, 6]}
    encoder, head = trained(6, **settings)  # the head's warm-up alone
    assert all(torch.equal(start[name], value) for name, value in encoder.items())
    _, other = trained(6, skip_steps=[1, 2, 3, 4, 5, 6])
    assert any(not torch.equal(head[name], value) for name, value in other.items())
    encoder, _ = trained(6, encoder_warmup_steps=2)
    assert any(not torch.equal(start[name], value) for name, value in encoder.items())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trained": {"type": "frozen"}, "steps": 90}, "encoder_warmup_steps: a frozen encoder has no rate"),
        ({"steps": 30}, r"expected a sum below the 30 steps, got 30"),
    ],
)
def test_warm_ups_that_leave_no_step_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        stage(schedule={"type": "poly", "warmup_steps": 10}, encoder_warmup_steps=20, **changes)
