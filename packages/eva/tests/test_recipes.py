"""The papers' trainings as recipes: their values are the papers', and what can be checked beforehand passes."""

from __future__ import annotations

import pytest
import torch

from vfm import stages
from vfm.flow.recipe import load_recipe
from vfm.stage import Preflight, Stage
from vfm_eva import EvaPretrain
from vfm_eva.plugin import vfm_stages

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


def stages(name: str, *overrides: str) -> tuple[Stage, ...]:
    known = {stage.kind_name(): stage for stage in [*stages.vfm_stages(), *vfm_stages()]}
    return load_recipe(name, known, overrides).stages


@pytest.mark.parametrize("name", PAPERS)
def test_values_are_the_papers(name, tmp_path):
    millions, epochs, images, batch, lr, drop_path, beta, source = PAPERS[name]
    (tmp_path / "a.tar").touch()
    _, teacher, stage = stages(name, f"data.path={tmp_path / 'a.tar'}")
    assert isinstance(stage, EvaPretrain)
    assert teacher.source == source
    assert (stage.global_batch_size, stage.lr, stage.drop_path, stage.betas) == (batch, lr, drop_path, (0.9, beta))
    assert (stage.min_lr, stage.eps, stage.weight_decay, stage.grad_clip_norm) == (1e-5, 1e-6, 0.05, 3)
    assert stage.num_steps == pytest.approx(epochs * images / batch, rel=1e-3)
    assert stage.patch_embed_grad == (0.1 if "02" in name else 1.0)
    stage.preflight(Preflight({}, {}))
    with torch.device("meta"):
        student = stage._student()
    assert sum(param.numel() for param in student.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert stage._num_masked(student) == (192 if name == "eva_l" else 105)
