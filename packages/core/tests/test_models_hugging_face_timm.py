"""An exported encoder has the same features in transformers, and the same logits with a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vfm.base import UserError
from vfm.models import build_vision, find_format, load_vision, open_model, save_vision

transformers = pytest.importorskip("transformers")
TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
ENCODERS = {"eva02_tiny_patch14_224": 56, "vit_small_patch16_dinov3": 64, "vit_base_patch16_224": 64}


def exported(folder: Path, name: str, size: int, num_classes: int) -> Any:
    save_vision(build_vision(name, seed=0, num_classes=num_classes, image_size=size, **TINY), folder / "ours")
    model = open_model(folder / "ours")
    find_format("hf", model, "it").write(model, folder / "hf")
    return model


@pytest.mark.parametrize("name", ENCODERS)
def test_transformers_computes_the_same_features(name: str, tmp_path: Path) -> None:
    model = exported(tmp_path, name, ENCODERS[name], 0)
    images = torch.randn(2, 3, ENCODERS[name], ENCODERS[name], generator=torch.Generator().manual_seed(0))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()(images)
    torch.testing.assert_close(theirs.last_hidden_state, model.forward_features(images))
    torch.testing.assert_close(theirs.pooler_output, model(images))
    torch.testing.assert_close(load_vision(tmp_path / "hf").eval()(images), model(images))


def test_a_head_is_read_by_the_class_for_classification(tmp_path: Path) -> None:
    model = exported(tmp_path, "vit_base_patch16_224", 64, 5)
    images = torch.randn(2, 3, 64, 64)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()(images)
    torch.testing.assert_close(theirs.logits, model(images))


def test_vfms_own_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is vfm's own, and transformers knows timm's only; possible formats: timm"):
        find_format("hf", build_vision("eva02_pico_patch8_32", seed=0), "it")
