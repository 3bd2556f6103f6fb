"""The papers' trainings as recipes: their values are the papers', and what can be checked beforehand passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfm import stages
from vfm.flow.recipe import load_recipe
from vfm.models import ClipModel, blueprint
from vfm.stage import Preflight, Stage
from vfm.train.optim import build_optimizer
from vfm_clip import ClipTrain
from vfm_clip.plugin import vfm_stages

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


def stages(name: str, folder: Path) -> dict[str, Stage]:
    """The stages of a recipe, with files of no content where it wants the user's."""
    (folder / "a.tar").touch()
    (folder / "g.pt").touch()
    overrides = [f"data.path={folder / 'a.tar'}", *([f"eva.source={folder / 'g.pt'}"] if "g14" in name else [])]
    known = {stage.kind_name(): stage for stage in [*stages.vfm_stages(), *vfm_stages()]}
    return {stage.name: stage for stage in load_recipe(name, known, overrides).stages}


def checked(stage: Stage, others: dict[str, Stage]) -> ClipTrain:
    """A training that passes its preflight."""
    assert isinstance(stage, ClipTrain)
    stage.preflight(Preflight(others, {}))
    return stage


def millions(clip: ClipModel) -> float:
    return sum(weight.numel() for weight in clip.module.parameters()) / 1e6


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_trainings_from_scratch_have_the_papers_values(name: str, tmp_path: Path) -> None:
    model, parameters, lr = FROM_SCRATCH[name]
    found = stages(name, tmp_path)
    stage = checked(found["clip"], found)
    assert (stage.model, stage.lr, stage.num_steps) == (model, lr, 12_800_000_000 // 32768)
    assert (stage.global_batch_size, stage.warmup_steps, stage.weight_decay) == (32768, 2000, 0.2)
    assert (stage.betas, stage.eps, stage.optimizer, stage.logit_scale_max) == ((0.9, 0.98), 1e-6, "adamw", 100)
    clip = blueprint(model)
    assert millions(clip) == pytest.approx(parameters, rel=0.01)
    assert bool(clip.config.get("quick_gelu")) == name.startswith("metaclip")


@pytest.mark.parametrize("name", EVA)
def test_trainings_of_eva_clip_have_the_papers_values(name: str, tmp_path: Path) -> None:
    model, parameters, seen, batch, rates, decays, dropped = EVA[name]
    found = stages(name, tmp_path)
    stage = checked(found["clip"], found)
    assert (stage.model, stage.samples_seen, stage.global_batch_size) == (model, seen, batch)
    assert ((stage.image_lr, stage.text_lr), stage.patch_dropout) == (rates, dropped)
    assert (stage.image_layer_decay, stage.text_layer_decay) == decays
    assert (stage.optimizer, stage.lr, stage.weight_decay, stage.grad_clip_norm) == ("lamb", 5e-4, 0.05, 5)
    assert (stage.betas, stage.eps, stage.warmup_steps) == ((0.9, 0.999), 1e-8, 2000)
    clip = blueprint(model, noise=stage.noise)
    assert millions(clip) == pytest.approx(parameters, rel=0.01)
    rungs = {group["lr_scale"] * stage.lr for group in build_optimizer(stage._task(clip), stage).param_groups}
    depth = len(clip.module.visual.trunk.blocks)
    assert min(rungs) == pytest.approx(
        min(rates[0] * decays[0] ** (depth + 1), rates[1] * decays[1] ** (len_text(clip) + 1))
    )


def len_text(clip: ClipModel) -> int:
    return int(clip.config["text_cfg"]["layers"])


def test_eva_clip_l_goes_on_at_336_pixels(tmp_path: Path) -> None:
    found = stages("eva_clip_l14", tmp_path)
    stage = checked(found["clip_336"], found)
    assert (stage.init, stage.image_size, stage.samples_seen, stage.global_batch_size) == ("clip", 336, 2e9, 61440)
    assert (stage.image_layer_decay, stage.text_layer_decay) == (0.75, 0.65)
    assert blueprint("EVA02-L-14", 336).module.visual.trunk.patch_embed.grid_size == (24, 24)
