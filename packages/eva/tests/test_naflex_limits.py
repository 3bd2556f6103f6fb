"""Rows of images at the limits: long ones, several processes, and students that an earlier stage trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eva_toy import losses, run, run_in_processes, stage
from vfm.plugin import Preflight, UserError
from vfm.train.loop.memory import remedy
from vfm_eva.pretrain.naflex.rows import Rows
from vfm_eva.pretrain.parts import BlockMask
from vfm_kernels import block_mask

ROWS: dict[str, Any] = {"seq_lens": [4, 12, 20], "row_tokens": 24}


def test_images_too_long_for_blocks_are_masked_too() -> None:
    rows = Rows(BlockMask().ratio, BlockMask().build, 1, 400)
    long, high, square = rows.masks(torch.arange(3), [(2, 128), (128, 2), (16, 16)])
    assert int(long.sum()) == int(high.sum()) == 105
    assert torch.equal(square, block_mask([2], (16, 16), 105)[0])


def test_two_processes_with_rows_of_their_own_have_the_losses_of_one(tmp_path: Path, pool: Any, teacher: Any) -> None:
    settings: dict[str, Any] = {"naflex": ROWS, "steps": 4, "global_batch_size": 12}
    run(tmp_path / "one", settings, pool=pool, teacher=teacher)
    two = run_in_processes(tmp_path / "two", settings, pool, teacher)
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    ours, theirs = (load_file(root / "artifact" / "model.safetensors") for root in (two, tmp_path / "one"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_stems_and_patches_that_a_strip_cannot_hold_are_one_line(teacher: Any) -> None:
    for model, line in [
        ("vit_tiny_r_s16_p8_224", "expected a plain patch embedding, got HybridEmbed"),
        ({"architecture": "vit_tiny_patch16_224", "patch_size": (16, 8)}, "expected square patches, got 16 x 8 pixels"),
    ]:
        config = stage(model=model, mask={"ratio": 0}, naflex={"seq_lens": [64]})
        with pytest.raises(UserError, match=f"naflex: {line}"):
            config.preflight(Preflight({}, {"teacher": teacher.path}))


def test_a_row_is_checked_again_when_the_stage_runs(tmp_path: Path, pool: Any, teacher: Any) -> None:
    short = {"naflex": {"seq_lens": [64], "row_tokens": 64}}
    with pytest.raises(UserError, match=r"naflex\.row_tokens: expected at least 65"):
        run(tmp_path, short, pool=pool, teacher=teacher)


def test_remedies_for_the_memory_are_settings_that_rows_allow() -> None:
    parts = {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0, "averages": 0.0, "activations": 6.0}
    line = remedy(stage(naflex=ROWS), parts, 8, 2)
    assert line.startswith("naflex does not support micro_batch_size; naflex.row_tokens bounds the memory")
    assert "--set" not in line
    assert "--set eva.micro_batch_size=4 frees" in remedy(stage(), parts, 8, 2)
