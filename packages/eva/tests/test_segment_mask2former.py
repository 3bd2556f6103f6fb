"""EVA-01's segmenter equals its released code on the same weights, and its files are read, every key accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

import vit_adapter_peer as peer
from eva_toy import context
from vfm.data.synthetic.stages import ShapesScenes
from vfm.models import build_vision
from vfm.plugin import AnnotatedImages, UserError
from vfm_eva.dense.adapter import ViTAdapter
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.mask2former import Mask2FormerSegmenter, build_mask2former
from vfm_eva.dense.segment.post import semantic_scores
from vfm_eva.dense.segment.predict import load_segmenter
from vfm_eva.dense.segment.released import import_segmenter, load_released
from vfm_eva.dense.segment.stages import EvaSegment, ImportSegmenter, Mask2FormerSegmentation

pytest.importorskip("transformers.models.mask2former")

MODEL = {"architecture": "eva_giant_patch14_224", "patch_size": 16, "img_size": peer.SIDE, "embed_dim": peer.WIDTH,
         "depth": peer.DEPTH, "num_heads": peer.HEADS, "mlp_ratio": peer.HIDDEN / peer.WIDTH}  # fmt: skip
HEAD = {"type": "mask2former", "channels": peer.CHANNELS, "num_heads": peer.DECODER_HEADS, "num_queries": peer.QUERIES,
        "pixel_layers": peer.ENCODER_LAYERS, "num_layers": peer.DECODER_LAYERS, "adapter_heads": 4,
        "adapter_channels": 8}  # fmt: skip
STORED = json.loads(peer.FILE.read_text(encoding="utf-8"))


def settings(release: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return encoder and head of a release."""
    relative = peer.RELEASES[release]
    model = {**MODEL, "init_values": 1.0} if relative else MODEL
    return model, {**HEAD, "relative": relative, **changes}


def build(release: str, **changes: Any) -> Mask2FormerSegmenter:
    model, head = settings(release, **changes)
    encoder = build_vision(model, num_classes=0)
    return build_mask2former(Mask2FormerSegmentation(**head), encoder, peer.CLASSES, frozen=False).eval()


def released(release: str) -> dict[str, Tensor]:
    return peer.weights(STORED[release]["shapes"])


@pytest.mark.parametrize("release", peer.RELEASES)
def test_maps_predictions_and_scores_equal_those_of_the_released_code(release: str) -> None:
    model, expected = build(release), STORED[release]
    load_released(released(release), model, "seg.pth")
    with torch.no_grad():
        maps = model.head.adapter(model.encoder, peer.image())
        (found,) = model(peer.image())
    scores = semantic_scores(found.classes, found.masks)
    for one, other in zip(maps, expected["maps"], strict=True):
        assert peer.some(one, 5) == pytest.approx(other, rel=1e-5, abs=1e-4)
    for name, value in {"classes": found.classes, "masks": found.masks, "scores": scores}.items():
        assert peer.some(value) == pytest.approx(expected[name], rel=1e-5, abs=2e-4), name


@pytest.mark.parametrize("release", peer.RELEASES)
def test_released_files_are_read_with_every_key_accounted_for(
    release: str, tmp_path: Path, scenes: AnnotatedImages
) -> None:
    weights = released(release)
    torch.save({"state_dict": weights, "meta": {"iter": 1}}, tmp_path / "seg.pth")
    model, head = settings(release)
    config = {"name": "import", "path": str(tmp_path / "seg.pth"), "model": model, "data": "scenes", "head": head}
    made = import_segmenter(ImportSegmenter.model_validate(config), context(tmp_path, scenes=scenes))
    predictor = load_segmenter(made, torch.device("cpu"))
    assert (predictor.preprocess.mean, predictor.preprocess.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    source = build(release)
    report = load_released(weights, source, "seg.pth")
    crop = np.random.default_rng(0).integers(0, 256, (1, peer.SIDE, peer.SIDE, 3), dtype=np.uint8)
    with torch.no_grad():
        (found,) = source(predictor.preprocess.pixels(crop))
    scores = predictor.crop_logits(crop)
    assert np.abs(scores - semantic_scores(found.classes, found.masks).numpy()).max() < 1e-5

    keys = [key for part in (report.taken, report.renamed, report.dropped) for key in part]
    joined = 2 * peer.DECODER_LAYERS  # weights and biases of queries, keys and values, which are split in three first
    assert len(set(keys)) == len(keys) == len(weights) + 2 * joined
    assert set(report.dropped.values()) <= {"counts the batches of the training", "computed from the grid"}
    assert set(report.new.values()) <= {"counts the batches of the training", "not read by the head"}


# From the logs of the released trainings on ADE20K, which list every parameter: without and with relative positions.
@pytest.mark.parametrize(("relative", "count"), [(False, 1_280_633_111), (True, 1_305_429_783)])
def test_the_defaults_have_the_number_of_parameters_of_the_released_files(relative: bool, count: int) -> None:
    model = {"architecture": "eva_giant_patch14_224", "patch_size": 16, "img_size": 896}
    head = Mask2FormerSegmentation(relative=relative, num_layers=9 if relative else 8)
    with torch.device("meta"):
        encoder = build_vision({**model, "init_values": 1.0 if relative else None}, num_classes=0)
        built = build_mask2former(head, encoder, 150, frozen=False)
    unread = ("encoder.visual.norm", "encoder.visual.fc_norm")
    assert sum(value.numel() for name, value in built.named_parameters() if not name.startswith(unread)) == count


def test_images_of_other_shapes_give_maps_of_four_strides() -> None:
    model = build("plain")
    with torch.no_grad():
        maps = model.head.adapter(model.encoder, torch.randn(1, 3, 64, 96))
    assert [one.shape[2:] for one in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_new_adapter_leaves_the_tokens_of_the_encoder_as_they_are() -> None:
    model, image = build("plain"), peer.image()
    seen: list[Tensor] = []
    model.encoder.trunk.blocks[-1].register_forward_hook(lambda block, given, found: seen.append(found))
    visual: Any = model.encoder.visual
    with torch.no_grad():
        visual.pos_embed[:, 0] = 0  # the class token has no position in the released code
        model.head.adapter(model.encoder, image)
        visual.forward_features(image)
    torch.testing.assert_close(seen[0], seen[1])


def test_a_file_of_another_kind_is_refused_in_a_line() -> None:
    weights, model = released("relative"), build("relative")
    with pytest.raises(UserError, match=r"^seg.pth: it has relative positions; set head.relative: true"):
        load_released(weights, build("plain"), "seg.pth")
    with pytest.raises(UserError, match=r"^seg.pth: it has no relative positions; set head.relative: false"):
        load_released(released("plain"), model, "seg.pth")
    with pytest.raises(UserError, match=r"^seg.pth: it has no ViT-Adapter .* set head.type: upernet"):
        load_released({"backbone.fpn1.0.weight": torch.zeros(1)}, model, "seg.pth")
    with pytest.raises(UserError, match=r"the file has decode_head.more, the head does not"):
        load_released({**weights, "decode_head.more": torch.zeros(1)}, model, "seg.pth")
    with pytest.raises(UserError, match=r"the file has backbone.interactions.3.more, the head does not"):
        load_released({**weights, "backbone.interactions.3.more": torch.zeros(1)}, model, "seg.pth")
    with pytest.raises(UserError, match=r"the file has blocks.0.more, the encoder does not"):
        load_released({**weights, "backbone.blocks.0.more": torch.zeros(1)}, model, "seg.pth")
    with pytest.raises(UserError, match=r"the file has decode_head.transformer_decoder.layers.3\S+, the head does not"):
        load_released(weights, build("relative", num_layers=3), "seg.pth")
    short = {key: value for key, value in weights.items() if key != "decode_head.cls_embed.bias"}
    with pytest.raises(UserError, match=r"the head has classify.bias, the file does not"):
        load_released(short, model, "seg.pth")


@pytest.mark.parametrize(
    ("changes", "heads", "message"),
    [
        ({"patch_size": 8}, 4, "patches of 16 pixels .* got patches of 8 and images of 64 x 64"),
        ({"img_size": 80}, 4, "images of multiples of 32, got patches of 16 and images of 80 x 80"),
        ({"depth": 5}, 4, "a multiple of four blocks, got 5"),
        ({"class_token": False, "global_pool": "avg"}, 4, "a timm encoder with a class token"),
        ({}, 5, "head.adapter_heads: expected a divisor of 16, got 5"),
    ],
)
def test_encoders_that_take_no_adapter(changes: dict[str, Any], heads: int, message: str) -> None:
    encoder = DenseEncoder(build_vision({**MODEL, **changes}, num_classes=0), prefix=False)
    with pytest.raises(UserError, match=message):
        ViTAdapter(encoder, heads, 8, relative=False)


def test_widths_that_do_not_divide_and_other_uses_are_refused() -> None:
    with pytest.raises(UserError, match=r"head.num_heads: expected channels that are a multiple of 5, got 32"):
        build("plain", num_heads=5)
    with pytest.raises(UserError, match=r"head.channels: expected channels that are a multiple of 32, got 48"):
        build("plain", channels=48)
    given = {"name": "a", "encoder": "b", "data": "c", "steps": 1, "global_batch_size": 1, "head": HEAD}
    with pytest.raises(ValueError, match="mask2former is read from released files"):
        EvaSegment.model_validate(given)
    with pytest.raises(ValueError, match="released files have upernet or mask2former, got queries"):
        ImportSegmenter.model_validate(
            {"name": "a", "path": "b", "model": MODEL, "data": "c", "head": {"type": "queries"}}
        )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    world = {"image_size": 64, "shapes": ["circle", "square", "triangle", "cross"]}
    stage = ShapesScenes.model_validate({"name": "scenes", "num_samples": 6, "max_objects": 2, "world": world})
    made = stage.run(context(tmp_path_factory.mktemp("scenes")))
    assert isinstance(made, AnnotatedImages)
    assert len(made.class_names) == peer.CLASSES
    return made
