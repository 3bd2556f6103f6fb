"""Tests of heads on maps: UperNet by transformers' classes, and EVA-02's released layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eva_toy import context
from vfm.data.synthetic.stages import ShapesScenes
from vfm.models import build_vision, load_state_dict, save_vision
from vfm.plugin import AnnotatedImages, UserError
from vfm_eva.dense.segment.maps import pixel_loss
from vfm_eva.dense.segment.model import build_linear, build_upernet
from vfm_eva.dense.segment.predict import load_segmenter
from vfm_eva.dense.segment.released import import_segmenter, load_released
from vfm_eva.dense.segment.stages import EvaSegment, ImportSegmenter, LinearSegmentation, UperNetSegmentation

pytest.importorskip("transformers.models.upernet")

UPERNET = UperNetSegmentation(layers=[0, 2, 3, 5], channels=12)
MODEL = {"architecture": "eva02_mini_patch14_112", "patch_size": 16, "img_size": 64}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    world = {"image_size": 64, "shapes": ["circle", "square"]}
    stage = ShapesScenes.model_validate({"name": "scenes", "num_samples": 6, "max_objects": 2, "world": world})
    return stage.run(context(tmp_path_factory.mktemp("scenes")))  # type: ignore[no-any-return]


def randomised(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def official(model: Any) -> dict[str, Tensor]:
    """Return the weights of a segmenter under the names of EVA-02's segmentation code, with its rotary tables."""
    names = {
        r"^encoder\.visual\.": "backbone.", r"^head\.decode\.": "decode_head.",
        r"^head\.auxiliary\.": "auxiliary_head.",
        r"\.classifier\.": ".conv_seg.", r"\.batch_norm\.": ".bn.", r"\.mlp\.fc1_g\.": ".mlp.w1.",
        r"\.mlp\.fc1_x\.": ".mlp.w2.", r"\.mlp\.norm\.": ".mlp.ffn_ln.", r"\.mlp\.fc2\.": ".mlp.w3.",
        r"\.attn\.([qv])_proj\.bias": r".attn.\1_bias",
    }  # fmt: skip
    weights = {}
    for key, value in model.state_dict().items():
        if key.startswith(("encoder.visual.norm", "encoder.visual.fc_norm")):
            continue
        name = re.sub(r"^head\.resample\.(\d)", lambda found: f"backbone.fpn{int(found[1]) + 1}", key)
        for pattern, other in names.items():
            name = re.sub(pattern, other, name)
        weights[name] = value.clone()
    tables = {"freqs_cos": torch.zeros(16, 64), "freqs_sin": torch.zeros(16, 64)}
    for place in ("backbone.rope", *(f"backbone.blocks.{block}.attn.rope" for block in range(6))):
        weights |= {f"{place}.{name}": table for name, table in tables.items()}
    return weights


def test_released_checkpoints_load_with_every_key_accounted_for(tmp_path: Path, scenes: AnnotatedImages) -> None:
    source = randomised(build_upernet(UPERNET, build_vision(MODEL), 3, frozen=False)).eval()
    weights = official(source)
    torch.save({"state_dict": weights, "meta": {"iter": 1}}, tmp_path / "seg.pth")
    settings = {"name": "import", "path": str(tmp_path / "seg.pth"), "model": MODEL, "data": "scenes",
                "head": UPERNET.model_dump()}  # fmt: skip
    made = import_segmenter(ImportSegmenter.model_validate(settings), context(tmp_path, scenes=scenes))
    crop = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    predictor = load_segmenter(made, torch.device("cpu"))
    with torch.no_grad():
        expected = source(predictor.preprocess.pixels(crop))[0]
    assert np.abs(predictor.crop_logits(crop) - expected.numpy()).max() < 1e-5
    model = build_upernet(UPERNET, build_vision(MODEL), 3, frozen=False)
    report = load_released(weights, model, "seg.pth")
    parts = (report.taken, report.renamed, report.dropped)
    assert sorted(key for part in parts for key in part) == sorted(
        key if key.startswith(("decode_head", "auxiliary_head", "backbone.fpn")) else key.removeprefix("backbone.")
        for key in weights
    )
    assert set(report.new.values()) <= {"not read by the head", "counts the batches of the training"}
    with pytest.raises(UserError, match=r"seg.pth: the file has decode_head.more, the head does not"):
        load_released({**weights, "decode_head.more": torch.zeros(1)}, model, "seg.pth")
    with pytest.raises(UserError, match=r"^seg.pth: it has a ViT-Adapter .* set head.type: mask2former"):
        load_released({"backbone.spm.stem.0.weight": torch.zeros(1)}, model, "seg.pth")


@pytest.mark.parametrize("head", [UPERNET.model_dump(), {"type": "linear", "layers": [1, -1]}])
@pytest.mark.parametrize("trained", ["all", "frozen", "last_blocks", "lora"])
def test_heads_on_maps_are_trained(head: dict[str, Any], trained: str, tmp_path: Path, scenes: AnnotatedImages) -> None:
    if trained == "lora":
        pytest.importorskip("peft")
    encoder = save_vision(build_vision(MODEL, num_classes=0), tmp_path / "encoder")
    settings = {"name": "segment", "encoder": "encoder", "data": "scenes", "head": head, "steps": 2, "log_every": 1,
                "trained": {"type": trained}, "global_batch_size": 2, "runtime": {"device": "cpu"},
                "lr": 1e-3}  # fmt: skip
    made = EvaSegment.model_validate(settings).run(context(tmp_path, encoder=encoder, scenes=scenes))
    start, end = (load_state_dict(path / "model.safetensors") for path in (encoder.path, made.path / made.encoder))
    assert start.keys() == end.keys()  # LoRA's changes are merged
    assert any(not torch.equal(value, end[name]) for name, value in start.items()) == (trained != "frozen")
    scores = load_segmenter(made, torch.device("cpu")).crop_logits(np.zeros((2, 64, 64, 3), dtype=np.uint8))
    assert scores.shape == ((2, 3, 16, 16) if head["type"] == "upernet" else (2, 3, 4, 4))


def test_what_a_head_does_not_read_is_not_trained() -> None:
    settings = UperNetSegmentation(layers=[0, 1, 2, 3], channels=12)
    model = build_upernet(settings, build_vision(MODEL, num_classes=0), 3, frozen=False).train()
    scores = model(torch.randn(2, 3, 64, 64))
    assert [one.shape for one in scores] == [(2, 3, 16, 16), (2, 3, 4, 4)]
    sum(one.square().mean() for one in scores).backward()  # type: ignore[union-attr]
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    linear = build_linear(LinearSegmentation(layers=[1]), build_vision(MODEL, num_classes=0), 3, frozen=False)
    linear(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert not [name for name, p in linear.named_parameters() if p.requires_grad and p.grad is None]


def test_unlabelled_pixels_have_no_loss() -> None:
    scores = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 1], [2, -1]], [[-1, -1], [-1, -1]]])
    expected = -sum(F.log_softmax(scores[0, :, y, x], dim=0)[labels[0, y, x]] for y, x in ((0, 0), (0, 1), (1, 0)))
    assert torch.allclose(pixel_loss(scores, labels), expected)
