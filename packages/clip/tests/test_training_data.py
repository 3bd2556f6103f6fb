"""Losses and mixtures through the stage: trained, saved and resumed as the recipe says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_world import COLOURS, VIT, make_pool, plan, run_stage
from vfm.eval.retrieval.stages import Retrieval
from vfm.models import build_clip, load_clip, save_clip
from vfm.plugin import ClipCheckpoint, Event
from vfm_clip.data import training_data

SIGLIP: dict[str, Any] = {"loss": {"type": "siglip"}}


def rows(checkpoint: ClipCheckpoint) -> list[dict[str, Any]]:
    lines = (checkpoint.path / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def test_siglip_starts_as_published_and_open_clip_loads_the_result(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    made, _ = run_stage(plan(**SIGLIP, steps=3), tmp_path, pool=pool)
    first, *_, last = rows(made)
    assert (first["train/logit_bias"], first["train/logit_scale"]) == (-10, pytest.approx(10))
    assert last["train/logit_bias"] != -10
    peer = open_clip.create_model(f"local-dir:{made.path}")
    torch.testing.assert_close(peer.logit_bias, load_clip(made).module.logit_bias)
    again, _ = run_stage(plan(**SIGLIP, model=None, init="start", lr=0.0), tmp_path / "again", pool=pool, start=made)
    (kept,) = rows(again)
    assert kept["train/logit_bias"] == pytest.approx(peer.logit_bias.item(), rel=1e-6)
    events: list[Event] = []
    run_stage(plan(model=None, init="start"), tmp_path / "other", send=events.append, pool=pool, start=made)
    assert any("was trained with SigLIP's sigmoid loss" in str(event.data) for event in events)


def test_a_student_approaches_its_teacher(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    teacher = save_clip(build_clip(VIT, seed=3), tmp_path / "teacher")
    before = teacher.path.joinpath("open_clip_model.safetensors").read_bytes()
    loss = {"type": "distillation", "teacher": "teacher", "weight": 10.0}
    made, _ = run_stage(
        plan(loss=loss, steps=15, lr=3e-3, schedule={"warmup_steps": 3}, global_batch_size=28),
        tmp_path,
        pool=pool,
        teacher=teacher,
    )
    losses = [row["train/distill_loss"] for row in rows(made)]
    assert losses[-1] < 0.97 * losses[0]
    assert rows(made)[0]["train/loss"] == pytest.approx(
        rows(made)[0]["train/contrastive_loss"] + 10 * losses[0], rel=1e-6
    )
    assert teacher.path.joinpath("open_clip_model.safetensors").read_bytes() == before


def test_a_mixture_resumes_to_the_same_bits_and_exports_the_best_weights(tmp_path: Path) -> None:
    parts = {"a": make_pool(tmp_path / "a")}
    parts["b"] = make_pool(tmp_path / "b", {f"{top} on black": {"de": [top]} for top in COLOURS if top != "black"})
    stage = plan(
        data=[{"data": "a"}, {"data": "b", "weight": 3}],
        language={"en": 1, "de": 2},
        steps=7,
        global_batch_size=16,
        evaluation={
            "tasks": [Retrieval(name="retrieval", data="a")],
            "every_steps": 2,
            "keep_best": "val/image_retrieval_recall@5",
        },
        checkpoint={"every_steps": 3},
    )

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, tmp_path / "cut", send=cut, **parts)
    made = [run_stage(stage, tmp_path / name, **parts)[0] for name in ("cut", "whole")]
    for file in ("open_clip_model.safetensors", "metrics.jsonl"):
        assert len({(each.path / file).read_bytes() for each in made}) == 1
    data, _ = training_data(stage, list(parts.values()), load_clip(made[0]), stage.language)
    order = data.order()(0, 4000)
    assert (order >= 56).mean() == pytest.approx(0.75, abs=0.01)
    assert math.isfinite(rows(made[0])[-1]["train/loss"])
