"""Weights files of timm's own classifiers load into their architecture, with the head, whatever its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vfm.models import build_vision, import_vision, save_state_dict

SMALL = [
    "convnext_atto", "crossvit_tiny_240", "deit_tiny_distilled_patch16_224", "dla46_c", "edgenext_xx_small",
    "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fastvit_t8",
    "ghostnet_050", "hardcorenas_a", "lcnet_035", "levit_128s", "mambaout_femto", "mnasnet_small",
    "mobilenetv3_small_050", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "pit_ti_distilled_224", "pvt_v2_b0",
    "regnetx_002", "repghostnet_050", "repvit_m0_9", "resnet10t", "shvit_s1", "starnet_s050", "swiftformer_xs",
    "test_nfnet", "tiny_vit_5m_224", "xcit_nano_12_p16_224",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_of_timm_loads_with_its_head(name: str, tmp_path: Path) -> None:
    saved = build_vision(name, num_classes=7).state_dict()
    save_state_dict(saved, tmp_path / "weights.safetensors")
    model = import_vision(name, str(tmp_path / "weights.safetensors"))
    loaded = model.state_dict()
    assert model.num_classes == 7
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_a_file_without_a_head_loads_without_classes(tmp_path: Path) -> None:
    saved = build_vision("resnet10t", num_classes=0).state_dict()
    save_state_dict(saved, tmp_path / "weights.safetensors")
    assert import_vision("resnet10t", str(tmp_path / "weights.safetensors")).num_classes == 0
