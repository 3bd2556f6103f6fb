"""The papers' trainings as recipes: they have the papers' values and pass their preflight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import ClipModel, blueprint
from vfm.plugin import AdamW, LambConfig, Preflight, Stage
from vfm_clip import ClipTrain
from vfm_clip.task import ClipTask
from vfm_clip.towers import trained_towers

# recipe: model, parameters of both towers in millions, peak rate
FROM_SCRATCH = {
    "clip_b32": ("ViT-B-32", 151, 5e-4),
    "clip_b16": ("ViT-B-16", 150, 5e-4),
    "clip_l14": ("ViT-L-14", 428, 4e-4),
    "metaclip_b32": ("ViT-B-32-quickgelu", 151, 5e-4),
    "metaclip_b16": ("ViT-B-16-quickgelu", 150, 5e-4),
    "metaclip_l14": ("ViT-L-14-quickgelu", 428, 4e-4),
}
# recipe: model, parameters, samples seen, batch, rates of image and text, layer decay of image and text, patch dropout
EVA: dict[str, tuple[Any, ...]] = {
    "eva_clip_b16": ("EVA02-B-16", 149, 8e9, 131072, (2e-4, 2e-5), (0.75, 0.75), 0),
    "eva_clip_l14": ("EVA02-L-14", 428, 4e9, 131072, (4e-4, 4e-5), (0.85, 0.75), 0),
    "eva_clip_g14_plus": ("EVA01-g-14-plus", 1366, 11e9, 114688, (4e-4, 4e-5), (0.85, 0.75), 0.5),
}


def recipe_stages(name: str, folder: Path) -> dict[str, Stage]:
    """Return the stages of a recipe, with empty files in place of the user's."""
    (folder / "a.tar").touch()
    (folder / "g.pt").touch()
    overrides = [f"data.path={folder / 'a.tar'}", *([f"eva.source={folder / 'g.pt'}"] if "g14" in name else [])]
    known = stage_types(load_plugins())
    return {stage.name: stage for stage in load_recipe(name, known, overrides).stages}


def checked(stage: Stage, others: dict[str, Stage]) -> ClipTrain:
    """Return a training that passes its preflight."""
    assert isinstance(stage, ClipTrain)
    stage.preflight(Preflight(others, {}))
    return stage


def millions(clip: ClipModel) -> float:
    return sum(weight.numel() for weight in clip.module.parameters()) / 1e6


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_trainings_from_scratch_have_the_papers_values(name: str, tmp_path: Path) -> None:
    model, parameters, lr = FROM_SCRATCH[name]
    found = recipe_stages(name, tmp_path)
    stage = checked(found["clip"], found)
    assert (stage.model, stage.lr, stage.num_steps) == (model, lr, 12_800_000_000 // 32768)
    assert (stage.global_batch_size, stage.schedule.warmup_steps, stage.logit_scale.max) == (32768, 2000, 100)
    assert stage.optimizer == AdamW(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    clip = blueprint(model)
    assert millions(clip) == pytest.approx(parameters, rel=0.01)
    assert bool(clip.config.get("quick_gelu")) == name.startswith("metaclip")


@pytest.mark.parametrize("name", EVA)
def test_trainings_of_eva_clip_have_the_papers_values(name: str, tmp_path: Path) -> None:
    model, parameters, seen, batch, rates, decays, dropped = EVA[name]
    found = recipe_stages(name, tmp_path)
    stage = checked(found["clip"], found)
    assert (stage.model, stage.samples_seen, stage.global_batch_size) == (model, seen, batch)
    assert tuple(tower.trained.lr_scale * stage.lr for tower in (stage.vision, stage.text)) == rates
    assert tuple(tower.trained.layer_decay for tower in (stage.vision, stage.text)) == decays
    assert stage.vision.patch_dropout == dropped
    assert (stage.lr, stage.schedule.warmup_steps) == (5e-4, 2000)
    assert stage.optimizer == LambConfig(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, grad_clip_norm=5)
    clip = blueprint(model, noise=stage.vision.noise)
    assert millions(clip) == pytest.approx(parameters, rel=0.01)
    groups = ClipTask(clip, towers=trained_towers(clip, stage.vision, stage.text)).parameter_groups()
    depth = len(clip.module.visual.trunk.blocks)
    assert min(group.lr_scale * stage.lr for group in groups) == pytest.approx(
        min(rates[0] * decays[0] ** (depth + 1), rates[1] * decays[1] ** (len_text(clip) + 1))
    )


def len_text(clip: ClipModel) -> int:
    return int(clip.config["text_cfg"]["layers"])


def test_eva_clip_l_has_a_second_training_at_336_pixels(tmp_path: Path) -> None:
    found = recipe_stages("eva_clip_l14", tmp_path)
    stage = checked(found["clip_336"], found)
    assert (stage.init, stage.image_size, stage.samples_seen, stage.global_batch_size) == ("clip", 336, 2e9, 61440)
    assert (stage.vision.trained.layer_decay, stage.text.trained.layer_decay) == (0.75, 0.65)
    assert blueprint("EVA02-L-14", 336).module.visual.trunk.patch_embed.grid_size == (24, 24)
