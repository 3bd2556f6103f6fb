"""Contradicting settings and settings without effect are refused; old flat keys are answered with the new place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vfm.base import error_lines
from vfm.plugin import AdamW, AllWeights, LambConfig
from vfm_clip import ClipTrain, InfoNce

FROZEN = {"trained": {"type": "frozen"}}


def stage(**changes: Any) -> ClipTrain:
    return ClipTrain(**{"name": "clip", "data": "pool", "steps": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": FROZEN, "text": FROZEN, "init": "x"}, "frozen leaves nothing to train"),
        ({"vision": FROZEN}, "vision.trained: frozen would keep random weights: give init or init_vision"),
        ({"text": FROZEN, "init_vision": "x"}, "frozen would keep random weights: give init or init_text"),
        ({"vision": {**FROZEN, "drop_path": 0.1}, "init": "x"}, "vision.drop_path has no effect, since vision.trained"),
        (
            {"text": {"trained": {"type": "frozen", "lr_scale": 0.1}}, "init": "x"},
            "text.trained.lr_scale has no effect, since text.trained: frozen keeps",
        ),
        ({"init": "x", "model": "ViT-Nano-4-32"}, "init has its own architecture: omit model"),
        ({"vision": {"unmasked_steps": 1}}, "vision.unmasked_steps ends vision.patch_dropout: give both"),
        ({"vision": {"unmasked_steps": 2, "patch_dropout": 0.5}}, "vision.unmasked_steps must be at most 1"),
        ({"logit_scale": {"init": 200}}, "logit_scale.init must be at most logit_scale.max, 100; got 200"),
        ({"augmentation": {"crop_scale": (1.0, 0.5)}}, "crop_scale"),
        ({"augmentation": {"crop_ratio": (0, 1)}}, "crop_ratio: expected two positive ratios"),
        ({"augmentation": {"crop_ratio": (1, 1), "crop_scale": None}}, "has no effect with crop_scale: null: omit it"),
        ({"loading": {"sampler": "balanced"}, "language": {"en": 1, "de": 1}}, "give one language"),
        ({"loss": {"chunk_size": 0}}, "chunk_size"),
        (
            {"loss": {"type": "focal"}},
            "'focal' is not known; known: cosine, distillation, distinct_info_nce, info_nce, siglip",
        ),
        ({"loss": "siglip"}, "write {type: siglip}"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        stage(**changes)
    ((_, line),) = error_lines(caught.value, ClipTrain)
    assert message in line or message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lock_image", "vision.trained: {type: frozen}"),
        ("lock_text_unlocked_layers", "text.trained: {type: last_blocks}"),
        ("image_lr", "vision.trained.lr_scale"),
        ("text_layer_decay", "text.trained.layer_decay"),
        ("update", "vision.trained and text.trained"),
        ("patch_dropout", "vision: {patch_dropout: 1}"),
        ("unmasked_steps", "vision: {unmasked_steps: 1}"),
        ("logit_scale_max", "logit_scale.max"),
        ("loss_chunk_size", "loss.chunk_size"),
        ("crop_ratio", "augmentation: {crop_ratio: 1}"),
        ("sampler", "loading: {sampler: 1}"),
        ("weight_decay", "optimizer: {weight_decay: 1}"),
        ("warmup_steps", "schedule: {warmup_steps: 1}"),
        ("evals", "evaluation.tasks"),
    ],
)
def test_an_old_flat_key_is_answered_with_its_new_place(old: str, new: str) -> None:
    with pytest.raises(ValidationError) as caught:
        stage(**{old: 1})
    assert (old,) in [location for location, _ in error_lines(caught.value, ClipTrain)]
    assert f"unknown key; did you mean '{new}'?" in [line for _, line in error_lines(caught.value, ClipTrain)]


@pytest.mark.parametrize(
    ("old", "new"), [("lock", "{type: frozen}"), ("unlocked", "{type: last_blocks}"), ("lr_scale", "{lr_scale: 1}")]
)
def test_an_old_key_of_a_tower_is_answered_with_what_is_trained(old: str, new: str) -> None:
    with pytest.raises(ValidationError) as caught:
        stage(text={old: 1})

    assert [line for _, line in error_lines(caught.value, ClipTrain)] == [
        f"unknown key; did you mean 'trained: {new}'?"
    ]


def test_a_group_keeps_the_defaults_that_are_not_given() -> None:
    assert stage(optimizer={"betas": (0.9, 0.95)}).optimizer == AdamW(betas=(0.9, 0.95), weight_decay=0.2)
    assert stage(optimizer={"type": "lamb"}).optimizer == LambConfig()  # another type has its own defaults
    assert stage(schedule={"min_lr": 1e-5}).schedule.warmup_steps == 100
    assert stage(loss={"chunk_size": 5}).loss == InfoNce(chunk_size=5)
    assert stage(vision={"trained": {"lr_scale": 0.5}}).vision.trained == AllWeights(lr_scale=0.5)


def test_noise_is_allowed_in_a_partly_locked_tower() -> None:
    lock = {**FROZEN, "patch_dropout": 0.5}
    part = {"trained": {"type": "last_blocks", "blocks": 1}, "patch_dropout": 0.5}
    for changes in ({"init": "x", "vision": part}, {"init_vision": "x", "vision": lock}):
        assert stage(**changes).vision.noise == {"patch_dropout": 0.5}
    assert stage(init="x", vision={**lock, "patch_dropout": 0}).vision.noise == {"patch_dropout": 0}


def test_every_setting_has_a_description() -> None:
    for name, field in ClipTrain.model_fields.items():
        assert field.description or name == "kind", name
