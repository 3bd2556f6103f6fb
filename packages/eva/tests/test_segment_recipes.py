"""The papers' trainings of segmentation as recipes: the values of the released configurations, and models that fit."""

from __future__ import annotations

import pytest
import torch

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import build_vision
from vfm.plugin import AdamW, PolySchedule
from vfm_eva.dense.segment.model import build_segmenter
from vfm_eva.dense.segment.stages import EvaSegment

ARCHITECTURES = {"b": "eva02_base_patch14_224", "l": "eva02_large_patch14_224"}

# recipe: side, batch, steps, rate, layer decay, drop path, power
VALUES = {
    "eva_02_b_ade20k": (512, 32, 60_000, 6e-5, 0.85, 0.15, 1.0),
    "eva_02_l_ade20k": (512, 16, 80_000, 4e-5, 0.9, 0.2, 1.0),
    "eva_02_b_coco_stuff": (640, 32, 60_000, 1e-4, 0.8, 0.1, 0.9),
    "eva_02_l_coco_stuff": (640, 32, 60_000, 1e-4, 0.8, 0.2, 0.9),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_the_released_files(name: str, tmp_path: object) -> None:
    known = stage_types(load_plugins())
    _, _, encoder, stage, evaluation = load_recipe(
        name, known, [f"{part}.path={tmp_path}" for part in ("train", "val")]
    ).stages
    assert isinstance(stage, EvaSegment)
    side, batch, steps, lr, decay, drop_path, power = VALUES[name]
    assert (stage.image_size, stage.global_batch_size, stage.steps, stage.lr) == (side, batch, steps, lr)
    assert (stage.trained.layer_decay, stage.drop_path, stage.patch_size) == (decay, drop_path, 16)
    assert stage.schedule == PolySchedule(power=power, warmup_steps=1500)
    assert stage.optimizer == AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    augmentation = stage.augmentation
    assert (augmentation.scale, augmentation.max_share, augmentation.photometric) == ((0.5, 2.0), 0.75, True)
    assert evaluation.kind_name() == "eval.segmentation"
    with torch.device("meta"):
        model = build_vision(ARCHITECTURES[name[7]], num_classes=0, img_size=side, patch_size=16)
        segmenter = build_segmenter(stage, model, 150)
    assert encoder.source.startswith(ARCHITECTURES[name[7]])  # type: ignore[attr-defined]
    assert segmenter.encoder.trunk.grid == (side // 16, side // 16)
