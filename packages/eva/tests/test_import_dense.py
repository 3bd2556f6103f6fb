"""Models in transformers' layout as predictors, beside transformers' own processors on equal random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from eva_toy import context
from vfm.eval.dense.dense_models import load_predictor
from vfm.eval.encode.sliding_windows import predict_labels
from vfm.plugin import AnnotatedImages, DenseCheckpoint, UserError
from vfm_eva.dense.imported.stages import ImportDense
from vfm_eva.dense.imported.transformers_models import import_dense

transformers = pytest.importorskip("transformers")

NAMES = ["cat", "dog", "sky"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
SIDE = 64
CPU = torch.device("cpu")


def segformer() -> tuple[Any, Any]:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, **LABELS,
    )  # fmt: skip
    size = {"height": SIDE, "width": SIDE}
    return transformers.SegformerForSemanticSegmentation(config), transformers.SegformerImageProcessor(size=size)


def upernet() -> tuple[Any, Any]:
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_in_channels=16, auxiliary_channels=8, **LABELS
    )
    size = {"height": SIDE, "width": SIDE}
    return transformers.UperNetForSemanticSegmentation(config), transformers.SegformerImageProcessor(size=size)


def eomt() -> tuple[Any, Any]:
    config = transformers.EomtConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=16, num_queries=7,
        num_blocks=2, num_register_tokens=4, **LABELS,
    )  # fmt: skip
    return transformers.EomtForUniversalSegmentation(config), eomt_processor()


def eomt_dinov3() -> tuple[Any, Any]:
    config = transformers.EomtDinov3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
        patch_size=16, num_queries=7, num_blocks=2, **LABELS,
    )  # fmt: skip
    return transformers.EomtDinov3ForUniversalSegmentation(config), eomt_processor()


def eomt_processor() -> Any:
    return transformers.EomtImageProcessor(
        size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True, do_split_image=False
    )


def mask2former() -> tuple[Any, Any]:
    backbone = transformers.SwinConfig(
        image_size=SIDE, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=7, **LABELS,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessor(size={"height": SIDE, "width": SIDE})
    return transformers.Mask2FormerForUniversalSegmentation(config), processor


def rt_detr() -> tuple[Any, Any]:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        feat_strides=[8, 16, 32], encoder_attention_heads=2, d_model=16, num_queries=7, decoder_layers=2,
        decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_attention_heads=2, num_denoising=0, **LABELS,
    )  # fmt: skip
    processor = transformers.RTDetrImageProcessor(size={"height": SIDE, "width": SIDE})
    return transformers.RTDetrForObjectDetection(config), processor


def yolos() -> tuple[Any, Any]:
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[SIDE, SIDE],
        num_detection_tokens=7, **LABELS,
    )  # fmt: skip
    processor = transformers.YolosImageProcessor(size={"height": SIDE, "width": SIDE})
    return transformers.YolosForObjectDetection(config), processor


def picture(width: int = 90, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def imported(
    folder: Path, made: Callable[[], tuple[Any, Any]], data: AnnotatedImages | None = None, **settings: Any
) -> tuple[Any, Any, DenseCheckpoint, Any]:
    """Save a random model and its processor, import the folder, and load the predictor."""
    torch.manual_seed(0)
    model, processor = made()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # new layers may be zero
    model.eval().save_pretrained(folder / "source")
    processor.save_pretrained(folder / "source")
    ctx = context(folder / "made", **({"data": data} if data else {}))
    stage = ImportDense(name="m", source=str(folder / "source"), data="data" if data else None, **settings)
    checkpoint = import_dense(stage, ctx)
    return model, processor, checkpoint, load_predictor(checkpoint, CPU)


@pytest.mark.parametrize("made", [segformer, upernet])
def test_maps_equal_transformers_on_a_square(tmp_path: Path, made: Callable[[], tuple[Any, Any]]) -> None:
    model, processor, checkpoint, predictor = imported(tmp_path, made)
    assert (checkpoint.tasks, checkpoint.class_names) == (["semantic"], NAMES)
    image = picture(SIDE, SIDE)
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"))
    np.testing.assert_allclose(predictor.crop_logits(np.asarray(image)[None]), outputs.logits.numpy(), atol=1e-5)
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(SIDE, SIDE)])
    assert (predict_labels(image, predictor.crop_logits, SIDE) == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize("made", [eomt, eomt_dinov3])
def test_panoptic_maps_equal_transformers_eomt(tmp_path: Path, made: Callable[[], tuple[Any, Any]]) -> None:
    model, processor, checkpoint, predictor = imported(tmp_path, made, task="panoptic")
    assert checkpoint.tasks == ["panoptic", "semantic", "boxes", "masks"]
    image = picture()
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"))
    (expected,) = processor.post_process_panoptic_segmentation(
        outputs, target_sizes=[(image.height, image.width)], threshold=0.3, stuff_classes=[]
    )
    classes, masks = predictor._queries(image)
    np.testing.assert_allclose(classes.softmax(-1), outputs.class_queries_logits[0].softmax(-1), atol=1e-5)
    from vfm_eva.dense.segment.post import panoptic_map

    segments, labels = panoptic_map(classes, masks, [True] * 3, score_threshold=0.3, overlap_threshold=0.8)
    assert labels.tolist() == [one["label_id"] for one in expected["segments_info"]]
    assert (segments.numpy() == expected["segmentation"].numpy()).all()
    (found,) = predictor.segment_all([image])
    assert found.segments.shape == (image.height, image.width)


def test_mask2formers_queries_are_transformers_at_full_size(tmp_path: Path) -> None:
    model, processor, _, predictor = imported(tmp_path, mask2former, task="instance")
    image = picture()
    with torch.no_grad():
        outputs = model(pixel_values=processor(images=[image], return_tensors="pt")["pixel_values"])
    classes, masks = predictor._queries(image)
    np.testing.assert_allclose(classes.softmax(-1), outputs.class_queries_logits[0].softmax(-1), atol=1e-5)
    square = F.interpolate(outputs.masks_queries_logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    expected = F.interpolate(square, size=(60, 90), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(masks, expected, atol=1e-5)
    (found,) = predictor.detect([image])
    assert found.masks is not None
    assert found.masks.shape == (len(found.labels), 60, 90)
    crop = np.asarray(picture(SIDE, SIDE))[None]
    assert predictor.crop_logits(crop).shape[:2] == (1, 3)


@pytest.mark.parametrize("made", [rt_detr, yolos])
def test_boxes_equal_transformers(tmp_path: Path, made: Callable[[], tuple[Any, Any]]) -> None:
    model, processor, checkpoint, predictor = imported(tmp_path, made)
    assert checkpoint.tasks == ["boxes"]
    image = picture()
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(60, 90)])
    (found,) = predictor.detect([image])
    order = expected["scores"].argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-5)
    assert found.labels.tolist() == expected["labels"][order].tolist()
    boxes = expected["boxes"][order].numpy().clip(0, (90, 60, 90, 60))
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)


def data_of(folder: Path, names: list[str]) -> AnnotatedImages:
    facts: dict[str, Any] = {
        "format": "coco", "labels": ["boxes", "masks", "semantic", "panoptic"], "class_names": names,
        "class_ids": list(range(len(names))), "things": [name != "sky" for name in names],
    }  # fmt: skip
    return AnnotatedImages.create(folder / "-".join(names), num_samples=1, bad_samples={}, **facts)


def test_classes_are_matched_by_name_and_others_are_left_out(tmp_path: Path) -> None:
    data = data_of(tmp_path, ["Dog", "kitten", "horse"])
    model, processor, checkpoint, predictor = imported(tmp_path / "a", segformer, data, renamed={"cat": "kitten"})
    assert checkpoint.class_names == ["Dog", "kitten", "horse"]
    image = picture(SIDE, SIDE)
    with torch.no_grad():
        logits = model(**processor(images=[image], return_tensors="pt")).logits.numpy()
    scores = predictor.crop_logits(np.asarray(image)[None])
    np.testing.assert_allclose(scores[:, :2], logits[:, [1, 0]], atol=1e-5)
    assert (scores[:, 2] < scores[:, :2].min()).all()  # the model has no horse
    _, _, _, boxes = imported(tmp_path / "b", rt_detr, data)
    assert set(boxes.detect([picture()])[0].labels.tolist()) <= {0}  # of its classes the data have the dog
    with pytest.raises(UserError, match="expected classes of the data"):
        imported(tmp_path / "c", segformer, data_of(tmp_path, ["car"]))
    with pytest.raises(UserError, match=r"renamed: .* has no class 'kat'; did you mean 'cat'"):
        imported(tmp_path / "d", segformer, data, renamed={"kat": "kitten"})


def test_queries_of_a_class_that_the_data_lack_are_none(tmp_path: Path) -> None:
    model, processor, _, predictor = imported(tmp_path, eomt, data_of(tmp_path, ["dog", "sky"]), task="panoptic")
    image = picture()
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"))
    probabilities = outputs.class_queries_logits[0].softmax(-1)
    classes, _ = predictor._queries(image)
    np.testing.assert_allclose(classes.softmax(-1)[:, :2], probabilities[:, [1, 2]], atol=1e-5)
    assert predictor.record.things == [True, False]


def test_another_model_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match=r"expected a model \.\.\.ForObjectDetection.*, got ViTForImageClassification"):
        import_dense(ImportDense(name="m", source=str(tmp_path / "vit")), context(tmp_path / "made"))
    with pytest.raises(UserError, match="no such folder; write a model of the hub as hf-hub:org/model"):
        import_dense(ImportDense(name="m", source=str(tmp_path / "none")), context(tmp_path / "made"))
