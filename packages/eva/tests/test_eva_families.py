"""Every family of timm is a student, or refused in one line of the preflight, as the committed table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import FAMILIES, MODES, configuration, refusal, step_and_reload
from torch import nn

from vfm.models import vision_preprocess
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.pretrain.students.masking import masked, visible_only
from vfm_eva.targets.stored import StoredTargets

TABLE = (Path(families.__file__).parent / "results" / "families.md").read_text(encoding="utf-8")
ROWS = {cells[1]: dict(zip(MODES, cells[3:6], strict=True)) for line in TABLE.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 8}  # fmt: skip


def test_the_table_has_every_family() -> None:
    assert set(FAMILIES) <= set(ROWS)
    assert len(FAMILIES) >= 28


@pytest.mark.parametrize("name", FAMILIES)
def test_family_trains_and_is_exported_or_is_refused(name: str, tmp_path: Path) -> None:
    for mode in MODES:
        config = configuration(FAMILIES[name], mode)
        line = refusal(config)
        assert ("no" if line else "yes") == ROWS[name][mode]
        assert "\n" not in line
        if not line and mode == [tried for tried in MODES if ROWS[name][tried] == "yes"][-1]:
            step_and_reload(config, tmp_path)
        elif line and mode == "all":
            assert line.partition(": ")[2] in TABLE


@pytest.mark.parametrize(
    ("name", "init"), [("DINOv3", "mae"), ("ViT with relative positions", "mae"), ("ViT of CLIP", "eva01")]
)
def test_initial_weights_do_not_need_learned_positions_or_a_bias(name: str, init: str, tmp_path: Path) -> None:
    config = configuration(FAMILIES[name], "all", init)
    assert refusal(config) == ""
    step_and_reload(config, tmp_path)


def test_initial_weights_for_other_blocks_are_refused_in_a_line() -> None:
    line = refusal(configuration(FAMILIES["ViT with parallel blocks"], "all", "eva02"))
    assert "eva02 is for blocks with one attention and one MLP after it, got ParallelThingsBlock" in line


@pytest.mark.parametrize("name", ["DINOv3", "InternViT"])
def test_masks_of_rows_and_columns_hide_the_same_patches(name: str) -> None:
    """Check that a masked patch has no influence, and a visible one has, where the embedding keeps rows and columns."""
    task = build_task(config := configuration(FAMILIES[name], "all"), build_student(config), StoredTargets(8))
    student: Any = task.student
    nn.init.normal_(task.mask_token, generator=torch.Generator().manual_seed(1))
    bool_mask = torch.zeros(1, 16, dtype=torch.bool)
    bool_mask[0, 6] = True  # row 1, column 2
    pixels = torch.randn(1, 3, *student.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    side = student.patch_embed.patch_size[0]
    for row, column, matters in ((1, 2, False), (2, 1, True)):
        changed = pixels.clone()
        changed[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] += 1
        with masked(student.eval(), task.mask_token, bool_mask), torch.no_grad():
            assert torch.equal(student.forward_features(pixels), student.forward_features(changed)) != matters


@pytest.mark.parametrize("name", ["ViT", "DINOv3"])
def test_visible_patches_alone_are_those_of_the_index(name: str) -> None:
    config = configuration(FAMILIES[name], "visible")
    student: Any = build_student(config).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    index, hidden = torch.tensor([[0, 1, 5]]), pixels.clone()
    hidden[:, :, 32:] = 7.0  # rows 2 and 3 of the patches: none of them is encoded
    with visible_only(student, index), torch.no_grad():
        assert torch.equal(student.forward_features(pixels), student.forward_features(hidden))


@pytest.mark.parametrize("model", ["vit_pico_patch8_32", {"architecture": "vit_pico_patch8_32"}])
def test_a_plain_vit_exports_the_mean_over_patches(model: Any, tmp_path: Path) -> None:
    """Check the default: no loss trains the class token."""
    settings = {"name": "eva", "data": "images", "teacher": "t", "model": model, "steps": 1, "global_batch_size": 2}
    student: Any = build_student(configuration(FAMILIES["ViT"], "all").model_validate(settings)).eval()
    images = torch.randn(2, 3, *[vision_preprocess(student).image_size] * 2)
    tokens = student.forward_features(images)[:, student.num_prefix_tokens :]
    torch.testing.assert_close(student(images), student.fc_norm(tokens.mean(dim=1)))
    own = build_student(
        configuration(FAMILIES["ViT"], "all").model_validate(
            {**settings, "model": {"architecture": "vit_pico_patch8_32", "global_pool": "token"}}
        )
    )
    assert own.global_pool == "token"
