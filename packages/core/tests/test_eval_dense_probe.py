"""Sliding windows, the patch head and the dense probe: what it reads, that it learns, and that it joins `vfm eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from annotated_world import coco, read, run, write_map
from cli_world import run_here
from vfm.base import UserError
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World
from vfm.eval.dense.stages import DenseProbe
from vfm.eval.encode.encoders import load_encoder
from vfm.eval.encode.sliding_windows import predict_labels, slide, window_starts
from vfm.eval.segmentation.dense_features import encode_maps
from vfm.eval.segmentation.dense_probe import folds_of
from vfm.eval.segmentation.patch_head import HeadTraining, point_loss, predict_map, train_head
from vfm.interfaces import (
    AnnotatedImages,
    Artifact,
    ClipCheckpoint,
    Context,
    Event,
    Preflight,
    Report,
    VisionCheckpoint,
    load_panels,
)
from vfm.models import build_clip, build_vision, save_clip, save_vision

CPU = torch.device("cpu")
TINY = {
    "architecture": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24,
    "num_heads": 2,
}  # fmt: skip
WORLD = World(image_size=32, shapes=("square", "star"), variety=0.0)


@pytest.mark.parametrize(("length", "expected"), [(5, [0]), (8, [0]), (9, [0, 1]), (20, [0, 5, 10, 12])])
def test_windows_cover_a_side(length: int, expected: list[int]) -> None:
    starts = window_starts(length, 8, 5)
    assert starts == expected
    assert {pixel for start in starts for pixel in range(start, start + 8)} >= set(range(length))


def brightness(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score pixels by their own brightness, so that windows of any place agree."""
    bright = crops.mean(axis=-1).astype(np.float32) / 255
    return np.stack([bright, 1 - bright], axis=1)


def test_windows_of_a_model_of_single_pixels_equal_one_pass() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
    whole = torch.from_numpy(brightness(picture[None]))[0]
    for side, step in ((8, 5), (16, 16), (40, 7)):
        torch.testing.assert_close(slide(picture, brightness, side, step, 3), whole)


def test_flips_and_scales_keep_a_symmetric_answer() -> None:
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 255
    expected = np.ones((16, 24))
    expected[:, 8:16] = 0
    for options in ({}, {"flip": True}, {"scales": (1.0, 2.0)}):
        found = predict_labels(Image.fromarray(pixels), brightness, 16, **options)  # type: ignore[arg-type]
        assert (found == expected).all()


def test_the_loss_at_points_is_that_of_all_pixels_at_their_centres() -> None:
    rng = np.random.default_rng(0)
    scores = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = rng.integers(-1, 3, (8, 8))
    y, x = np.mgrid[:8, :8]
    points = np.stack([(x.ravel() + 0.5) / 8, (y.ravel() + 0.5) / 8], axis=-1)[None]
    full = F.interpolate(scores, size=(8, 8), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, torch.from_numpy(labels)[None], ignore_index=-1)
    torch.testing.assert_close(point_loss(scores, [labels], points), expected)


def test_a_head_learns_what_is_linear_in_the_patches() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1) for _ in range(12)]
    centres = torch.eye(3)[:, :, None, None].repeat(1, 2, 1, 1)[:, :6]
    maps = torch.stack([centres[torch.from_numpy(one[::8, ::8])][..., 0, 0].permute(2, 0, 1) for one in labels])
    noisy = maps + 0.1 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    training = HeadTraining(120, 4, 1e-3, num_points=64)
    head = train_head(noisy, labels, np.arange(8), 3, 0.05, training, CPU)
    right = [(predict_map(head, noisy, row, (32, 32), CPU) == labels[row])[2::8, 2::8].mean() for row in range(8, 12)]
    assert np.mean(right) > 0.9
    again = train_head(noisy, labels, np.arange(8), 3, 0.05, training, CPU)
    assert all((a == b).all() for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True))


def test_folds_are_equal_parts() -> None:
    fold = folds_of(23, 5, 0)
    assert np.bincount(fold).tolist() == [5, 5, 5, 4, 4]
    assert (fold == folds_of(23, 5, 0)).all()


def encoder(folder: Path, seed: int = 0) -> VisionCheckpoint:
    return save_vision(build_vision(TINY, num_classes=0, seed=seed), folder)


def clip(folder: Path) -> ClipCheckpoint:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    return save_clip(build_clip(config, seed=0), folder)


def scenes(folder: Path, count: int, seed: int) -> AnnotatedImages:
    stage = ShapesScenes(
        kind="shapes.scenes", name="scenes", world=WORLD, num_samples=count, seed=seed, max_objects=2, scale=(0.2, 0.3)
    )
    return run(stage, folder)


@pytest.mark.parametrize("size", [None, 48])
def test_maps_are_of_the_wanted_layers_and_size(tmp_path: Path, size: int | None) -> None:
    model = load_encoder(encoder(tmp_path), CPU)
    pictures = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    maps = encode_maps(model, pictures, [0, -1], size, CPU)
    side = (size or 32) // 8
    assert maps.shape == (2, 48, side, side)
    torch.testing.assert_close(maps[:, :24], maps[:, 24:])  # one block: the first is the last


def evaluate(stage: DenseProbe, folder: Path, **inputs: Artifact) -> Report:
    folder.mkdir(parents=True)
    stage.run(Context(stage.name, folder, folder / "work", {name: one.path for name, one in inputs.items()}))
    report = Artifact.load(folder)
    assert isinstance(report, Report)
    assert not list((folder / "work").iterdir())
    return report


def probe(**fields: Any) -> DenseProbe:
    settings = {"models": ["vit", "clip"], "data": "test", "steps": 30, "train_batch_size": 4, "num_resamples": 100}
    return DenseProbe(kind="eval.dense_probe", name="probe", **{**settings, **fields})


def test_encoders_and_clip_towers_are_compared_on_the_same_pictures(tmp_path: Path) -> None:
    train, test = scenes(tmp_path / "train", 16, 0), scenes(tmp_path / "test", 10, 1)
    models = {"vit": encoder(tmp_path / "vit"), "clip": clip(tmp_path / "clip")}
    report = evaluate(probe(train="train", lrs=[1e-3, 1e-2]), tmp_path / "a", train=train, test=test, **models)
    names = {(one.model, one.name) for one in report.metrics}
    assert {("vit", "dense_miou"), ("clip", "dense_miou"), ("clip", "dense_pixel_acc")} <= names
    assert all(one.n == 10 and one.low <= one.value <= one.high for one in report.metrics)
    assert [gap.test for gap in report.comparisons] == ["paired resamples"] * 3
    record = json.loads((report.path / "results/test_vit_dense_probe.json").read_text())
    assert record["resize_mode"] == "squash"
    assert record["lrs"][0] in (1e-3, 1e-2)
    assert {"Classes by IoU", "Worst images"} <= {panel.title for panel in load_panels(report.path)}
    again = evaluate(probe(train="train", lrs=[1e-3, 1e-2]), tmp_path / "b", train=train, test=test, **models)
    assert [one.value for one in again.metrics] == [one.value for one in report.metrics]


def test_a_probe_on_its_training_images_is_warned_of(tmp_path: Path) -> None:
    data, model = scenes(tmp_path / "data", 6, 0), encoder(tmp_path / "vit")
    events: list[Event] = []
    inputs = {"train": data.path, "test": data.path, "vit": model.path}
    context = Context("probe", tmp_path, tmp_path / "work", inputs, events.append)
    probe(models=["vit"], train="train", steps=2, lrs=[1e-3]).run(context)
    messages = [event.data["message"] for event in events if event.type == "warning"]
    assert messages == ["6 of the 6 test images are also training images: the score says little about new images"]


def test_without_training_images_each_picture_is_left_out_once(tmp_path: Path) -> None:
    data, model = scenes(tmp_path / "data", 9, 0), encoder(tmp_path / "vit")
    report = evaluate(probe(models=["vit"], folds=3), tmp_path / "a", test=data, vit=model)
    assert report.metrics[0].n == 9
    with pytest.raises(UserError, match="test: 9 usable images, expected at least one for each of 10 folds"):
        evaluate(probe(models=["vit"], folds=10), tmp_path / "b", test=data, vit=model)


def test_rates_cannot_be_chosen_on_the_only_training_image(tmp_path: Path) -> None:
    data, model = scenes(tmp_path / "data", 2, 0), encoder(tmp_path / "vit")
    with pytest.raises(UserError, match="test: expected two or more training images to choose among lrs, got 1"):
        evaluate(probe(models=["vit"], folds=2, lrs=[1e-3, 1e-2]), tmp_path / "a", test=data, vit=model)


def test_labels_without_maps_are_found_before_the_run(tmp_path: Path) -> None:
    boxes = read(tmp_path / "boxes", coco(tmp_path / "coco", [{"bbox": [2, 1, 6, 4]}]))
    with pytest.raises(UserError, match="needs images with semantic labels, got boxes"):
        probe().preflight(Preflight({}, {"test": boxes.path}))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    write_map(tmp_path / "maps/a.png", np.zeros((8, 8)))
    sets = [
        read(tmp_path / last, tmp_path / "images", annotations=str(tmp_path / "maps"), names=["a", last])
        for last in ("b", "c")
    ]
    with pytest.raises(UserError, match="expected the same classes in train and test, got 'c' where 'b' is"):
        probe(train="train").preflight(Preflight({}, {"test": sets[0].path, "train": sets[1].path}))


def test_another_way_to_resize_is_refused() -> None:
    assert probe(resize_mode="squash").resize_mode == "squash"
    with pytest.raises(ValueError, match="resize_mode: expected squash, since images are squashed here, got shortest"):
        probe(resize_mode="shortest")


def test_it_joins_vfm_eval_beside_zero_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes(tmp_path / "made", 6, 0)
    encoder(tmp_path / "vit")
    clip(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    words = ["vit", "clip", "--data", "scenes=made/artifact", "--tasks", "dense_probe,zero_shot"]
    planned = run_here("eval", *words, "--dry-run")
    assert planned.code == 0, planned.err
    stages = {stage["name"]: stage for stage in yaml.safe_load(planned.out)["stages"]}
    assert stages["scenes-dense_probe"]["models"] == ["vit", "clip"]
    (missing,) = stages["summary"]["missing"]
    assert missing["why"] == "scenes is a AnnotatedImages: zero_shot needs class labels"
    few = [
        f"--set=scenes-dense_probe.{name}={value}"
        for name, value in (("steps", 5), ("num_resamples", 100), ("folds", 2))
    ]
    done = run_here("eval", *words, *few, "--quiet", "--name", "dense")
    assert done.code == 0, done.err
    results = (tmp_path / "store/runs/dense/results/results.csv").read_text()
    assert "dense_miou" in results.splitlines()[0]
    assert len(results.splitlines()) == 3
