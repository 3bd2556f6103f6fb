"""Tests of `eva.segment` from samples to evaluations, on scenes of the synthetic world."""

# B images, Q queries, K classes, M segments, S side

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from eva_toy import context
from vfm.data import SampleDraw
from vfm.data.annotated import AnnotatedSource
from vfm.data.synthetic.stages import ShapesScenes
from vfm.eval.dense.stages import Detection, Panoptic, Segmentation
from vfm.models import build_clip, build_vision, load_vision, save_clip, save_vision
from vfm.plugin import (
    AnnotatedImages,
    DenseCheckpoint,
    Event,
    Preflight,
    UserError,
    VisionCheckpoint,
)
from vfm_eva.dense.augment import Placement
from vfm_eva.dense.crops import draw_crop, largest_share, place_labels
from vfm_eva.dense.segment.post import best_objects, maskness, panoptic_map, semantic_scores
from vfm_eva.dense.segment.predict import load_segmenter
from vfm_eva.dense.segment.samples import MakeSegments, count_crowded, largest, unpack_masks
from vfm_eva.dense.segment.stages import EvaSegment, SegmentAugmentation

SIDE = 32
QUERIES = {"type": "queries", "num_queries": 8, "num_blocks": 1, "loss": {"num_points": 64}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    world = {"image_size": SIDE, "shapes": ["circle", "square", "star"]}
    stage = ShapesScenes.model_validate({"name": "scenes", "num_samples": 12, "max_objects": 3, "world": world})
    return stage.run(context(tmp_path_factory.mktemp("scenes")))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    model = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0)
    return save_vision(model, tmp_path_factory.mktemp("encoder"))


def stage(**changes: Any) -> EvaSegment:
    settings = {
        "name": "segment", "encoder": "encoder", "data": "scenes", "head": QUERIES, "steps": 3,
        "global_batch_size": 4, "log_every": 1, "runtime": {"device": "cpu"},
        "augmentation": {"scale": (0.5, 1.5)},
    }  # fmt: skip
    return EvaSegment.model_validate(settings | changes)


def trained(folder: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint, **changes: Any) -> DenseCheckpoint:
    return stage(**changes).run(context(folder, encoder=encoder, scenes=scenes))  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_queries_train_and_predict(
    task: str, tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint
) -> None:
    made = trained(tmp_path, scenes, encoder, task=task)
    lines = [json.loads(line) for line in (tmp_path / "artifact" / "metrics.jsonl").read_text().splitlines()]
    parts = ("train/class_loss", "train/mask_loss", "train/dice_loss")
    assert all(sum(line[part] for part in parts) == pytest.approx(line["train/loss"], rel=1e-5) for line in lines)
    predictor = load_segmenter(made, torch.device("cpu"))
    picture = AnnotatedSource(scenes).image(0)
    if "semantic" in made.tasks:
        assert predictor.crop_logits(np.asarray(picture)[None]).shape == (1, 4, 8, 8)
    if "boxes" in made.tasks:
        (found,) = predictor.detect([picture.resize((40, 24))])
        assert found.masks is not None
        assert found.masks.shape == (len(found.labels), 24, 40)
        assert set(found.labels.tolist()) <= {0, 1, 2}  # the ground has no instances
    if "panoptic" in made.tasks:
        (segments,) = predictor.segment_all([picture])
        assert segments.segments.shape == (SIDE, SIDE)


def test_the_encoder_stays_in_timms_layout(tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint) -> None:
    frozen = trained(tmp_path / "frozen", scenes, encoder, trained={"type": "frozen"})
    tuned = trained(tmp_path / "tuned", scenes, encoder)
    start = load_vision(encoder).state_dict()
    kept = load_vision(frozen.path / frozen.encoder).state_dict()
    changed = load_vision(tuned.path / tuned.encoder).state_dict()
    assert start.keys() == kept.keys() == changed.keys()
    assert all(torch.equal(start[key], kept[key]) for key in start)
    assert not torch.equal(start["patch_embed.proj.weight"], changed["patch_embed.proj.weight"])


class CutError(Exception):
    """Ends a training in its midst, as a crash does."""


def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint
) -> None:
    settings = {
        "steps": 4,
        "checkpoint": {"every_steps": 2},
        "augmentation": {"scale": (0.5, 1.5), "photometric": True},
    }
    whole = trained(tmp_path / "whole", scenes, encoder, **settings)

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 3:
            raise CutError

    with pytest.raises(CutError):
        stage(**settings).run(context(tmp_path / "cut", cut, encoder=encoder, scenes=scenes))
    resumed = trained(tmp_path / "cut", scenes, encoder, **settings)
    for one, other in zip(_weights(whole), _weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_micro_batches_are_one_large_batch(tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint) -> None:
    head = {"type": "linear"}
    large = trained(tmp_path / "large", scenes, encoder, head=head, steps=1)
    small = trained(tmp_path / "small", scenes, encoder, head=head, steps=1, micro_batch_size=4)
    for one, other in zip(_weights(large), _weights(small), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("evaluation", "task", "metric"),
    [(Segmentation, "semantic", "miou"), (Panoptic, "panoptic", "pq"), (Detection, "instance", "mask_ap")],
)
def test_evaluations_take_what_is_trained(
    evaluation: type[Segmentation | Panoptic | Detection],
    task: str,
    metric: str,
    tmp_path: Path,
    scenes: AnnotatedImages,
    encoder: VisionCheckpoint,
) -> None:
    made = trained(tmp_path, scenes, encoder, task=task, steps=1)
    settings = {"name": "eval", "models": ["model"], "data": "scenes", "num_resamples": 100}
    report = evaluation.model_validate(settings).run(context(tmp_path / "eval", model=made, scenes=scenes))
    record = json.dumps(report.model_dump(mode="json"))
    assert metric in record


def test_what_a_training_cannot_do_is_one_line(
    tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint
) -> None:
    known = Preflight({}, {"encoder": encoder.path, "scenes": scenes.path})
    with pytest.raises(UserError, match="image_size: expected a multiple of the patch size 8, got 36"):
        stage(image_size=36).preflight(known)
    with pytest.raises(UserError, match=r"head.num_blocks: expected 1 to 2, .* got 4"):
        stage(head={**QUERIES, "num_blocks": 4}).preflight(known)
    with pytest.raises(ValueError, match="a linear head predicts semantic, got panoptic"):
        stage(head={"type": "linear"}, task="panoptic")
    with pytest.raises(ValueError, match=r"0 < smallest <= largest, got 2.0, 1.0"):
        stage(augmentation={"scale": (2.0, 1.0)})
    fourteen = save_vision(build_vision("vit_mini_patch14_112", num_classes=0), tmp_path / "fourteen")
    known = Preflight({}, {"encoder": fourteen.path, "scenes": scenes.path})
    with pytest.raises(UserError, match="patches must have 4, 8, 16 or 32, got 14; set patch_size"):
        stage(image_size=112).preflight(known)
    stage(image_size=128, patch_size=16).preflight(known)
    federated = ShapesScenes.model_validate(
        {"name": "scenes", "num_samples": 2, "federated": True, "world": {"image_size": SIDE}}
    ).run(context(tmp_path / "federated"))
    known = Preflight({}, {"encoder": encoder.path, "scenes": federated.path})
    with pytest.raises(UserError, match="scenes: task panoptic needs panoptic, the dataset has boxes, masks"):
        stage(task="panoptic").preflight(known)
    stage(task="instance").preflight(known)
    resnet = save_vision(build_vision("resnet10t", num_classes=0), tmp_path / "resnet")
    with pytest.raises(UserError, match="no patch tokens"):
        stage().preflight(Preflight({}, {"encoder": resnet.path, "scenes": scenes.path}))
    hybrid = save_vision(build_vision("vit_tiny_r_s16_p8_224", depth=1, num_classes=0), tmp_path / "hybrid")
    with pytest.raises(UserError, match="expected a plain patch embedding, got one with a convolutional stem"):
        stage().preflight(Preflight({}, {"encoder": hybrid.path, "scenes": scenes.path}))
    plain = save_clip(build_clip("ViT-Pico-8-32", seed=0), tmp_path / "plain")
    with pytest.raises(UserError, match="ViT-Pico-8-32 is open_clip's own, which timm's layout does not hold"):
        stage().preflight(Preflight({}, {"encoder": plain.path}))


def test_more_segments_than_queries_are_counted_and_reported(
    tmp_path: Path, scenes: AnnotatedImages, encoder: VisionCheckpoint
) -> None:
    source = AnnotatedSource(scenes)
    counts = [len(source.objects(number)) for number in range(len(source))]
    assert count_crowded(source, "instance", 2) == sum(count > 2 for count in counts) > 0
    assert count_crowded(source, "panoptic", 3) == sum(count + 1 > 3 for count in counts)
    events: list[Event] = []
    few = {**QUERIES, "num_queries": 2}
    stage(head=few, task="instance", steps=1).run(context(tmp_path, events.append, encoder=encoder, scenes=scenes))
    said = [str(event.data) for event in events if "more segments than the 2 queries" in str(event.data)]
    assert len(said) == 1
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, 0, 0], masks[1, :2], masks[2, :3] = True, True, True
    assert largest(masks, 2).tolist() == [1, 2]


def test_the_tower_of_a_clip_model_is_an_encoder(tmp_path: Path, scenes: AnnotatedImages) -> None:
    clip = build_clip("EVA02-Pico-8-32", seed=0)
    tower: Any = clip.module.visual
    made = trained(tmp_path, scenes, save_clip(clip, tmp_path / "clip"), trained={"type": "frozen"}, steps=1)  # type: ignore[arg-type]
    kept = load_vision(made.path / made.encoder).state_dict()
    assert torch.equal(kept["blocks.1.mlp.fc2.weight"], tower.trunk.state_dict()["blocks.1.mlp.fc2.weight"])


def make(source: AnnotatedSource, task: str, **changes: Any) -> MakeSegments:
    return MakeSegments(
        source, task, SIDE, SegmentAugmentation.model_validate({"scale": (1, 1), "flip": 0, **changes}), 6
    )


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_samples_are_the_labels_of_their_pixels(task: str, scenes: AnnotatedImages) -> None:
    source = AnnotatedSource(scenes)
    for number in range(4):
        made = make(source, task)(source.source[number], SampleDraw(5, 0, number))
        masks = unpack_masks(made.masks.parts[0], SIDE).bool()
        semantic = np.full((SIDE, SIDE), -1)
        for label, mask in zip(made.labels.parts[0].tolist(), masks.numpy(), strict=True):
            if label >= 0:
                assert (semantic[mask] == -1).all()  # these do not overlap
                semantic[mask] = label
        assert (semantic == source.semantic(number)).all()
        assert (made.images.permute(1, 2, 0).numpy() == np.asarray(source.image(number))).all()


def test_crowds_and_ignored_objects_are_no_background(scenes: AnnotatedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    source = AnnotatedSource(scenes)
    objects = source.objects(0)
    mask = source.masks(0)[0]
    flags = np.arange(len(objects)) == 0
    monkeypatch.setattr(source, "objects", lambda number: replace(objects, crowd=flags))
    made = make(source, "panoptic")(source.source[0], SampleDraw(5, 0, 0))
    assert len(made.labels.parts[0]) == len(objects)  # the others and the ground
    assert not unpack_masks(made.masks.parts[0], SIDE).bool().any(dim=0).numpy()[mask].any()


def test_a_flip_turns_picture_and_labels(scenes: AnnotatedImages) -> None:
    source = AnnotatedSource(scenes)
    plain = make(source, "semantic")(source.source[0], SampleDraw(5, 0, 0))
    turned = make(source, "semantic", flip=1.0)(source.source[0], SampleDraw(5, 0, 0))
    assert plain.semantic is not None
    assert turned.semantic is not None
    assert torch.equal(plain.semantic.flip(-1), turned.semantic)
    assert torch.equal(plain.images.flip(-1), turned.images)


def test_crops_have_at_most_a_share_of_one_class() -> None:
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[10:30, 15:45] = 1

    def below(max_share: float) -> int:
        """Return how many of twenty crops have less than three quarters of one class."""
        generators = (np.random.default_rng(seed) for seed in range(20))
        crops = [draw_crop(labels, 16, (1.0, 2.0), 0.5, rng, max_share=max_share) for rng in generators]
        return sum(largest_share(place_labels(labels, crop)) < 0.75 for crop in crops)

    assert below(0.75) == 20
    assert below(1.01) < 18


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_labels_are_cropped_as_an_array(left: int, top: int, flip: bool) -> None:
    labels = np.arange(20 * 24).reshape(20, 24)
    placement = Placement((24, 20), (24, 20), (left, top), 12, flip)
    known = labels[:, ::-1] if flip else labels
    expected = np.full((12, 12), -1)
    part = known[top : top + 12, left : left + 12]
    expected[: part.shape[0], : part.shape[1]] = part
    assert (place_labels(labels, placement) == expected).all()


def test_post_processing_equals_transformers() -> None:
    eomt = pytest.importorskip("transformers.models.eomt.image_processing_eomt")
    generator = torch.Generator().manual_seed(0)
    classes = 4 * torch.randn(1, 9, 5, generator=generator)
    masks = 4 * torch.randn(1, 9, 12, 12, generator=generator)
    outputs = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes)
    processor = eomt.EomtImageProcessor(size={"shortest_edge": 12, "longest_edge": 12})
    things = [True, False, True, False]
    for score, overlap in ((0.5, 0.2), (0.3, 0.1), (0.8, 0.8)):
        (expected,) = processor.post_process_panoptic_segmentation(
            outputs, [(12, 12)], threshold=score, overlap_mask_area_threshold=overlap, stuff_classes=[1, 3]
        )
        segments, labels = panoptic_map(classes[0], masks[0], things, score_threshold=score, overlap_threshold=overlap)
        assert torch.equal(segments, expected["segmentation"].long())
        assert labels.tolist() == [one["label_id"] for one in expected["segments_info"]]
    expected = torch.zeros(4, 12, 12)
    for query in range(9):
        for label in range(4):
            expected[label] += classes[0, query].softmax(dim=0)[label] * masks[0, query].sigmoid()
    assert torch.allclose(semantic_scores(classes, masks)[0], expected, atol=1e-6)
    best = best_objects(classes[0], things)
    assert set(best.labels.tolist()) == {0, 2}  # the others have no instances
    assert best.scores[0] == classes[0].softmax(dim=1)[:, [0, 2]].max()
    assert float(maskness(torch.tensor([[[0.0, 1.0], [-1.0, 2.0]]]))) == pytest.approx((0.7310586 + 0.8807970) / 2)


def _weights(made: DenseCheckpoint) -> list[torch.Tensor]:
    return list(load_segmenter(made, torch.device("cpu")).model.state_dict().values())
