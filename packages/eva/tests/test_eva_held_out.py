"""`eval.masked_patches`: the loss on pictures outside the training set, its interval, and the alarm for overfitting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import eva_toy
from eva_toy import context, run, stage
from vfm.data import decode_image, open_dataset
from vfm.models import build_vision, load_vision, read_masked_modelling, save_vision
from vfm.plugin import (
    ClipCheckpoint,
    Event,
    Pool,
    Preflight,
    UserError,
    VisionCheckpoint,
)
from vfm_eva import EvaPretrain, EvaTargets
from vfm_eva.pretrain.alarm import HeldOutAlarm
from vfm_eva.pretrain.held_out import MeanScore, every_second_patch
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.students.masking import masked
from vfm_eva.targets.teacher import load_teacher


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return pictures that no test trains on."""
    return eva_toy.make_pool(tmp_path_factory.mktemp("other"), num_samples=12)


def evaluation(**changes: object) -> MaskedPatches:
    return MaskedPatches.model_validate({"name": "held_out", "data": "other", **changes})


def test_every_second_patch_is_masked_in_the_order_of_rows() -> None:
    assert every_second_patch((2, 3))[0].tolist() == [True, False, True, False, True, False]


def test_a_saved_student_has_the_cosine_computed_image_by_image(
    tmp_path: Path, pool: Pool, other: Pool, teacher: ClipCheckpoint
) -> None:
    made = run(tmp_path / "eva", {"steps": 2}, pool=pool, teacher=teacher)
    config = evaluation(models=["eva"], teacher="teacher")
    config.preflight(Preflight({}, {"eva": made.path, "teacher": teacher.path, "other": other.path}))
    report = config.run(context(tmp_path / "report", eva=made, teacher=teacher, other=other))
    student, held = load_vision(made).eval(), load_teacher(teacher, config.target)
    added, mask, cosines = read_masked_modelling(made.path), every_second_patch((4, 4)), []
    for sample in open_dataset(other):
        pixels = torch.from_numpy(held.preprocess.fit(decode_image(sample.image, sample.key))).permute(2, 0, 1)[None]
        with torch.no_grad(), masked(student, added["mask_token"], mask):
            tokens = student.fc_norm(student.forward_features(held.preprocess.pixels(pixels))[:, 1:])
        prediction = F.linear(tokens, added["head.weight"], added["head.bias"])
        cosines.append(F.cosine_similarity(prediction, held.features(pixels, (4, 4)), dim=-1)[mask].mean().item())
    (metric,) = report.metrics
    assert metric.name == "masked_cosine"
    assert metric.value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert metric.low < metric.value < metric.high


def test_it_evaluates_a_training_and_keeps_its_best_weights(
    tmp_path: Path, pool: Pool, other: Pool, teacher: ClipCheckpoint
) -> None:
    policy = {"tasks": [{"kind": "eval.masked_patches", "data": "other"}], "every_steps": 2}
    known = {"eval.masked_patches": MaskedPatches}
    settings = stage(steps=4).model_dump(exclude_unset=True) | {
        "evaluation": {**policy, "keep_best": "val/masked_cosine"}
    }
    config = type(stage()).model_validate(settings, context=known)
    config.run(context(tmp_path, pool=pool, teacher=teacher, other=other))
    lines = (tmp_path / "artifact" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row["val/masked_cosine"] for row in map(json.loads, lines) if "val/masked_cosine" in row]
    assert len(found) >= 2
    assert found[-1] > found[0]


def test_a_fall_of_the_held_out_cosine_is_one_warning(tmp_path: Path) -> None:
    alarm = HeldOutAlarm()
    events: list[Event] = []
    ctx = context(tmp_path, events.append)
    for cosine in (0.2, 0.5, 0.49, 0.47, 0.3):
        alarm.check(ctx, cosine)
    (event,) = events
    assert event.type == "warning"
    assert "has fallen from 0.500 to 0.470: the student overfits" in event.data["message"]


def test_models_without_a_head_or_a_teacher_are_refused(tmp_path: Path, pool: Pool, teacher: ClipCheckpoint) -> None:
    made = run(tmp_path / "eva", {"steps": 1}, pool=pool, teacher=teacher)
    with pytest.raises(UserError, match=r"^models need the teacher .* set teacher"):
        evaluation(models=["eva"]).preflight(Preflight({}, {"eva": made.path}))
    (made.path / "masked_modelling.safetensors").unlink()
    with pytest.raises(UserError, match="has no mask token and head"):
        evaluation(models=["eva"], teacher="teacher").preflight(Preflight({}, {"eva": made.path}))


def narrow(folder: Path) -> VisionCheckpoint:
    """Save an encoder whose features have half as many channels as the targets of the other tests."""
    mapping = {"architecture": "vit_pico_patch8_32", "embed_dim": 32, "num_heads": 2}
    return save_vision(build_vision(mapping, num_classes=0, seed=0), folder)


def evaluated(task: dict[str, object], **changes: object) -> EvaPretrain:
    """Return a training that is evaluated on other pictures, by a task of these settings."""
    policy = {"tasks": [{"kind": "eval.masked_patches", "data": "other", **task}]}
    settings = {**stage().model_dump(exclude_unset=True), "evaluation": policy, **changes}
    return EvaPretrain.model_validate(settings, context={"eval.masked_patches": MaskedPatches})


def test_a_training_of_stored_targets_needs_a_teacher_of_its_evaluation(
    tmp_path: Path, pool: Pool, teacher: ClipCheckpoint
) -> None:
    config = evaluated({}, teacher=None, targets="stored")
    with pytest.raises(UserError, match=r"^evaluation.tasks.masked_patches: the training has stored targets; set t"):
        config.preflight(Preflight({}, {}))
    makers = EvaTargets.model_validate({"name": "stored", "data": "pool", "teacher": "teacher", "grid": [4, 4]})
    stored = makers.run(context(tmp_path, pool=pool, teacher=teacher))
    known = Preflight({}, {"stored": stored.path, "pool": pool.path, "teacher": teacher.path})
    evaluated({"teacher": "teacher"}, teacher=None, targets="stored").preflight(known)
    known.artifacts["narrow"] = narrow(tmp_path / "narrow").path  # type: ignore[index]
    other = evaluated({"teacher": "narrow", "target": {"projected": False}}, teacher=None, targets="stored")
    with pytest.raises(UserError, match="its head predicts 64 channels, the features of teacher have 32"):
        other.preflight(known)


def test_a_teacher_of_another_width_is_refused_before_the_training(
    tmp_path: Path, pool: Pool, other: Pool, teacher: ClipCheckpoint
) -> None:
    small = narrow(tmp_path / "small")
    config = evaluated({"teacher": "small", "target": {"projected": False}})
    line = r"^evaluation.tasks.masked_patches: its head predicts 64 channels, the features of teacher have 32"
    with pytest.raises(UserError, match=line):
        config.preflight(Preflight({}, {"teacher": teacher.path, "small": small.path}))
    with pytest.raises(UserError, match=line):  # a teacher that did not exist in the preflight
        config.run(context(tmp_path, pool=pool, teacher=teacher, other=other, small=small))
    assert not (tmp_path / "artifact" / "metrics.jsonl").exists()
    evaluated({"teacher": "same"}).preflight(Preflight({}, {"teacher": teacher.path, "same": teacher.path}))
    made = run(tmp_path / "eva", {"steps": 1}, pool=pool, teacher=teacher)
    known = Preflight({}, {"eva": made.path, "small": small.path})
    with pytest.raises(UserError, match=r"^eva: its head predicts"):
        evaluation(models=["eva"], teacher="small", target={"projected": False}).preflight(known)


def test_a_student_of_visible_patches_is_refused_before_its_training() -> None:
    student = stage(encode="visible", mask={"type": "random"})
    with pytest.raises(UserError, match=r"^eva: has a decoder, .* expected an encoder of eva.pretrain with encode"):
        evaluation(models=["eva"], teacher="teacher").preflight(Preflight({"eva": student}, {}))
    evaluation(models=["eva"], teacher="teacher").preflight(Preflight({"eva": stage()}, {}))


def test_models_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="models: 'eva' is named more than once"):
        evaluation(models=["A/eva", "B/eva"], teacher="teacher").preflight(Preflight({}, {}))


def test_intervals_of_a_mean_cover_it() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        low, high = MeanScore("m", generator.normal(0.3, 0.1, 40)).interval(seed)
        inside += low < 0.3 < high
    assert 88 <= inside <= 99
    values = generator.normal(0.3, 0.1, 40)
    better = MeanScore("m", values + 0.05).difference(MeanScore("m", values))
    assert better.low == pytest.approx(0.05)
    assert better.p_value < 0.01
