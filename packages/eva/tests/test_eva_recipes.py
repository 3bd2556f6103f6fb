"""The papers' trainings as recipes: they have the papers' values and pass their preflight."""

from __future__ import annotations

import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import vision_preprocess
from vfm.plugin import AdamW, Preflight, Stage
from vfm_eva import EvaFinetune, EvaPretrain
from vfm_eva.pretrain.building import build_student, num_masked
from vfm_eva.video.stages import EvaVideo

IN_21K = 14_197_122

# recipe: parameters in millions, epochs, images, batch, peak rate, drop path, beta 2, teacher
PAPERS = {
    "eva_g": (1011, 150, 29.66e6, 4096, 1e-3, 0.1, 0.98, "ViT-L-14"),
    "eva_l": (303, 150, IN_21K, 4096, 2.4e-3, 0.0, 0.95, "EVA01-g-14"),
    "eva_02_ti": (5.5, 240, IN_21K, 4000, 3e-3, 0.0, 0.98, "EVA01-g-14"),
    "eva_02_s": (22, 240, IN_21K, 4000, 3e-3, 0.0, 0.98, "EVA01-g-14"),
    "eva_02_b": (86, 150, IN_21K, 2048, 1.5e-3, 0.0, 0.98, "EVA01-g-14"),
    "eva_02_l": (303, 150, IN_21K, 2048, 1.5e-3, 0.1, 0.98, "EVA01-g-14"),
}


def recipe_stages(name: str, *overrides: str) -> tuple[Stage, ...]:
    known = stage_types(load_plugins())
    return load_recipe(name, known, overrides).stages


@pytest.mark.parametrize("name", PAPERS)
def test_values_are_the_papers(name, tmp_path):
    millions, epochs, images, batch, lr, drop_path, beta, source = PAPERS[name]
    (tmp_path / "a.tar").touch()
    _, teacher, stage = recipe_stages(name, f"data.path={tmp_path / 'a.tar'}")
    assert isinstance(stage, EvaPretrain)
    assert teacher.source == source
    assert (stage.global_batch_size, stage.lr, stage.student.drop_path) == (batch, lr, drop_path)
    assert stage.optimizer == AdamW(betas=(0.9, beta), eps=1e-6, weight_decay=0.05, grad_clip_norm=3)
    assert stage.schedule.min_lr == 1e-5
    assert stage.num_steps == pytest.approx(epochs * images / batch, rel=1e-3)
    assert stage.student.patch_embed_grad == (0.1 if "02" in name else 1.0)
    stage.preflight(Preflight({}, {}))
    with torch.device("meta"):
        student = build_student(stage)
    assert sum(param.numel() for param in student.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert num_masked(stage, student) == (192 if name == "eva_l" else 105)
    # The authors' students see CLIP's mean and std at 224 pixels, and their features are means over patches.
    preprocess = vision_preprocess(student)
    assert (preprocess.image_size, preprocess.interpolation) == (224, "bicubic")
    assert (preprocess.mean, preprocess.std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    assert student.global_pool == "avg"


def test_each_resolution_starts_from_the_one_before(tmp_path):
    (tmp_path / "a.tar").touch()
    stages = [s for s in recipe_stages("eva_02_b_448", f"data.path={tmp_path / 'a.tar'}") if isinstance(s, EvaPretrain)]
    assert [(s.start, s.image_size) for s in stages] == [(None, None), ("eva", 336), ("eva_336", 448)]
    for stage in stages:
        stage.preflight(Preflight({}, {}))


def test_the_augmented_probe_trains_a_normed_head_for_ninety_epochs(tmp_path):
    (tmp_path / "a").mkdir()
    paths = [f"{name}.path={tmp_path / 'a'}" for name in ("train", "val")]
    (stage,) = [s for s in recipe_stages("eva_linear_probe", *paths) if isinstance(s, EvaFinetune)]
    assert (stage.trained.type, stage.head_norm, stage.global_pool) == ("frozen", "batch", "token")
    assert stage.num_steps == pytest.approx(90 * 1_281_167 / 16_000, abs=1)


@pytest.mark.parametrize(
    ("name", "frames", "lr", "steps", "sets"),
    [
        ("eva_g_k722", 8, 8e-6, 40 * 0.63e6 / 256, ("k400", "k600", "k700", "k400_val", "k600_val", "k700_val")),
        ("eva_g_k400", 16, 1e-6, 240e3 / 256, ("train", "val")),
        ("eva_02_l_k400", 16, 1e-4, 20 * 240e3 / 256, ("train", "val")),
    ],
)
def test_videos_have_the_papers_frames_rates_and_lengths(name, frames, lr, steps, sets, tmp_path):
    found = recipe_stages(name, *(f"{one}.path={tmp_path}" for one in sets))
    (stage,) = [one for one in found if isinstance(one, EvaVideo)]
    assert (stage.clip.num_frames, stage.lr, stage.global_batch_size, stage.image_size) == (frames, lr, 256, 224)
    assert stage.num_steps == pytest.approx(steps, rel=5e-3)
    assert (stage.video.attention, stage.video.time, stage.video.pool) == ("joint", "frames", "mean")
    assert (stage.augmentation.mixup > 0) == (name != "eva_g_k400")
    assert stage.augmentation.scales == (1, 0.875, 0.75, 0.66)
