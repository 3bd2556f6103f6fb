"""`eval.open_segmentation`: classes and words, decisions against plain twins, whole runs, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from annotated_world import coco, read, run, write_map
from cli_world import run_here
from vfm.base import UserError
from vfm.data.annotated import AnnotatedSource
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World
from vfm.eval.open_segmentation.classes import evaluated_classes, short_side_of
from vfm.eval.open_segmentation.decisions import (
    Guess,
    ThresholdCounts,
    at_thresholds,
    choose_thresholds,
    counts_by_threshold,
    decide,
    halves,
)
from vfm.eval.open_segmentation.guesses import grid_map, guess_by_shares, one_class, uniform_guess
from vfm.eval.open_segmentation.last_block_rules import NaClip, UnchangedClip
from vfm.eval.open_segmentation.segmenter import Segmenter, SlidingWindowSettings, padded_to_patches
from vfm.eval.open_segmentation.stages import OpenSegmentation
from vfm.interfaces import AnnotatedImages, Artifact, ClipCheckpoint, Context, Preflight, Report, load_panels
from vfm.models import build_clip, build_vision, load_clip, save_clip, save_vision
from vfm.models.vision.last_block import last_block_reader
from vfm.statistics.mean_iou import MeanIou, count_pixels

WORLD = World(image_size=32, shapes=("square", "star"), colours=("red", "blue"), variety=0.0)


def stage(**fields: Any) -> OpenSegmentation:
    given_fields = {"models": ["clip"], "data": "test", "num_resamples": 100, "templates": ["a {}"], **fields}
    return OpenSegmentation(kind="eval.open_segmentation", name="open", **given_fields)


def dataset(names: list[str], labels: tuple[str, ...] = ("semantic",)) -> AnnotatedImages:
    ids = list(range(len(names)))
    return AnnotatedImages.model_construct(
        class_names=names,
        class_ids=ids,
        labels=list(labels),
        has_images=True,
        path=Path("set"),  # type: ignore[call-arg]
    )


VOC = ["background", *(f"thing {n}" for n in range(20))]
STUFF = [f"class {n}" for n in range(171)]


@pytest.mark.parametrize(
    ("convention", "names", "num_classes", "background", "labels"),
    [
        ("voc21", VOC, 21, 0, {0: 0, 20: 20, -1: -1}),
        ("voc20", VOC, 20, None, {0: -1, 1: 0, 20: 19, -1: -1}),
        ("pc60", VOC + [f"more {n}" for n in range(39)], 60, 0, {0: 0, 59: 59, -1: -1}),
        ("pc59", VOC + [f"more {n}" for n in range(39)], 59, None, {0: -1, 59: 58, -1: -1}),
        ("object", STUFF, 81, 0, {0: 1, 79: 80, 80: 0, 170: 0, -1: 0}),
        ("stuff", STUFF, 171, None, {0: 0, 170: 170, -1: -1}),
        ("city", STUFF[:19], 19, None, {0: 0, 18: 18, -1: -1}),
        ("ade", STUFF[:150], 150, None, {0: 0, 149: 149, -1: -1}),
    ],
)
def test_conventions_of_the_published_sets(
    convention: Any, names: list[str], num_classes: int, background: int | None, labels: dict[int, int]
) -> None:
    config = stage(convention=convention)
    classes = evaluated_classes(config, dataset(names))
    assert (len(classes.names), classes.background) == (num_classes, background)
    found = classes.truth(np.array([list(labels)]))[0].tolist()
    assert found == list(labels.values())
    assert short_side_of(config, 224) == (560 if convention == "city" else 336)
    assert short_side_of(stage(convention=convention, short_side=448), 224) == 448


def test_classes_are_folded_ignored_and_added() -> None:
    config = stage(background="nothing", as_background=["sky"], ignore=["c"], unlabelled_is_background=True)
    classes = evaluated_classes(config, dataset(["a", "sky", "b", "c"]))
    assert classes.names == ["nothing", "a", "b"]
    assert classes.truth(np.array([0, 1, 2, 3, -1])).tolist() == [1, 0, 2, -1, 0]
    within = evaluated_classes(stage(background="sky"), dataset(["a", "sky", "b"]))
    assert (within.names, within.background) == (["a", "sky", "b"], 1)


def test_words_come_from_a_file_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky; wall, white\nperson; man\n\n")
    config = stage(names=str(tmp_path / "names.txt"), separator="; ")
    classes = evaluated_classes(config, dataset(["a", "b"]))
    assert classes.words == [["sky", "wall, white"], ["person", "man"]]
    assert classes.owners.tolist() == [0, 0, 1, 1]
    assert evaluated_classes(stage(names=["x, y", "z"]), dataset(["a", "b"])).all_words == ["x", "y", "z"]


def test_words_decide_by_the_best_of_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines, owners = torch.rand(6, 5, 7, generator=generator), torch.tensor([0, 0, 0, 1, 2, 2])
    guess = decide(cosines, owners, 40.0)
    for y in range(5):
        for x in range(7):
            words = np.exp(40 * cosines[:, y, x].double().numpy())
            words /= words.sum()
            classes = [words[:3].max(), words[3], words[4:].max()]
            assert guess.labels[y, x] == int(np.argmax(classes))
            assert guess.probability[y, x] == pytest.approx(max(classes), rel=1e-4)


def test_a_class_of_a_small_area_gives_way() -> None:
    cosines = torch.zeros(3, 1, 20)
    cosines[0, 0, :8] = cosines[1, 0, 8:19] = cosines[2, 0, 19] = 1.0
    cosines[1, 0, 19] = 0.5
    owners = torch.arange(3)
    assert decide(cosines, owners, 10.0).labels[0].tolist() == [0] * 8 + [1] * 11 + [2]
    fewer = decide(cosines, owners, 10.0, background=0, min_area=0.1)
    assert fewer.labels[0].tolist() == [0] * 8 + [1] * 12  # one of the twelve pixels that are not background


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([None, 0, 2]))
def test_counts_of_all_thresholds_are_those_of_each(seed: int, background: int | None) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 4, (6, 9))
    guess = Guess(rng.integers(0, 4, (6, 9)), rng.choice(np.linspace(0, 1, 6), (6, 9)).astype(np.float32))
    thresholds = [0.0, 0.2, 0.5, 1.0]
    counts = counts_by_threshold(truth, guess, thresholds, background, 4)
    for place, threshold in enumerate(thresholds):
        expected = count_pixels(truth, guess.at(threshold, background), 4)
        assert counts.right[place].tolist() == expected.right.tolist()
        assert counts.predicted[place].tolist() == expected.predicted.tolist()
        assert counts.true.tolist() == expected.true.tolist()


def test_an_image_never_chooses_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    thresholds = [0.1, 0.5, 0.9]
    guesses = [Guess(rng.integers(0, 3, (8, 8)), rng.random((8, 8)).astype(np.float32)) for _ in range(8)]
    truths = [rng.integers(0, 3, (8, 8)) for _ in range(8)]
    counts = [counts_by_threshold(t, g, thresholds, 0, 3) for t, g in zip(truths, guesses, strict=True)]
    half = halves(8, 0)
    assert np.bincount(half).tolist() == [4, 4]
    places = choose_thresholds(counts, half)
    for own in (0, 1):
        others = [n for n in range(8) if half[n] != own]
        scores = [
            np.mean(MeanIou.of([count_pixels(truths[n], guesses[n].at(t, 0), 3) for n in others]).by_class())
            for t in thresholds
        ]
        assert set(places[half == own]) == {int(np.argmax(scores))}
    nothing = ThresholdCounts(*(np.zeros_like(one) for one in (counts[0].right, counts[0].predicted, counts[0].true)))
    changed = [nothing if half[n] == 0 else counts[n] for n in range(8)]
    assert (choose_thresholds(changed, half)[half == 0] == places[half == 0]).all()
    total = at_thresholds(counts, places)
    expected = count_pixels(truths[3], guesses[3].at(thresholds[places[3]], 0), 3)
    assert total.predicted[3].tolist() == expected.predicted.tolist()


def test_guesses_reach_what_drawn_maps_reach() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    truth = rng.choice(3, (400, 400), p=shares)
    actual = np.bincount(truth.ravel()) / truth.size
    for expected, drawn in (
        (uniform_guess(actual), rng.integers(0, 3, truth.shape)),
        (guess_by_shares(actual), rng.choice(3, truth.shape, p=actual)),
        (one_class(actual), np.zeros_like(truth)),
    ):
        assert MeanIou.of([count_pixels(truth, drawn, 3)]).by_class().mean() == pytest.approx(expected, abs=0.01)
    equal = np.full(20, 1 / 20)
    assert uniform_guess(equal) == pytest.approx(1 / 39)  # 1 / (2 K - 1)


def test_a_cell_takes_its_most_frequent_class() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 2, 1, -1], [2, 2, -1, -1], [2, 1, -1, 0]])
    assert grid_map(truth, (2, 2), 3).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 0, 0]] * 2
    assert (grid_map(truth, (4, 4), 3)[truth >= 0] == truth[truth >= 0]).all()


def clip(folder: Path, seed: int = 0, **vision: Any) -> ClipCheckpoint:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4, **vision},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    return save_clip(build_clip(config, seed=seed), folder)


def scenes(folder: Path, count: int, seed: int = 0) -> AnnotatedImages:
    config = ShapesScenes(
        kind="shapes.scenes", name="scenes", world=WORLD, num_samples=count, seed=seed, max_objects=2, scale=(0.2, 0.3)
    )
    return run(config, folder)


def segmenter(folder: Path, view: SlidingWindowSettings) -> Segmenter:
    model = load_clip(clip(folder))
    words = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    parts = {"naclip": NaClip(), "clip": UnchangedClip()}
    rules = {name: part.build(None) for name, part in parts.items()}
    return Segmenter(model, last_block_reader(model), words, rules, view, "clip")


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_one_window_is_the_whole_picture_and_batches_do_not_matter(tmp_path: Path) -> None:
    square = picture(16, 16)
    one = dict(segmenter(tmp_path / "a", SlidingWindowSettings(16, 16, 0.5)).cosines(square, "a"))
    whole = dict(segmenter(tmp_path / "b", SlidingWindowSettings(16, None, 0.5)).cosines(square, "a"))
    for name in one:
        torch.testing.assert_close(one[name], whole[name], rtol=1e-4, atol=1e-5)
    wide = picture(20, 33)
    by_size = [
        dict(segmenter(tmp_path / f"c{n}", SlidingWindowSettings(20, 16, 0.5, n)).cosines(wide, "a"))["naclip"]
        for n in (1, 4, 99)
    ]
    assert by_size[0].shape == (5, 20, 33)
    for other in by_size[1:]:
        torch.testing.assert_close(by_size[0], other, rtol=1e-4, atol=1e-5)


def test_windows_are_averaged_before_any_decision(tmp_path: Path) -> None:
    """A twin in the manner of the published code: window by window, at the padded size, then divided by the counts."""
    wide, side, step = picture(20, 30), 16, 8
    model = segmenter(tmp_path, SlidingWindowSettings(20, side, step / side))
    found = dict(model.cosines(wide, "a"))["naclip"]
    total, count = torch.zeros(5, 20, 30), torch.zeros(20, 30)
    for row in range(-(-(20 - side) // step) + 1):
        for column in range(-(-(30 - side) // step) + 1):
            bottom, right = min(row * step + side, 20), min(column * step + side, 30)
            crop = np.array(wide)[bottom - side : bottom, right - side : right]
            low = model.window_cosines(crop[None])["naclip"]
            total[:, bottom - side : bottom, right - side : right] += F.interpolate(low, (side, side), mode="bilinear")[
                0
            ]
            count[bottom - side : bottom, right - side : right] += 1
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-5)


def test_a_side_that_patches_do_not_fill_is_padded(tmp_path: Path) -> None:
    padded = padded_to_patches(np.zeros((9, 12, 3), np.uint8), (4, 4), (7, 8, 9))
    assert padded.shape == (12, 12, 3)
    assert padded[9:].reshape(-1, 3).tolist() == [[7, 8, 9]] * 36
    whole = segmenter(tmp_path, SlidingWindowSettings(18, None, 0.5))
    assert dict(whole.cosines(picture(18, 21), "a"))["clip"].shape == (5, 18, 21)
    assert whole.grid(picture(18, 21)) == (5, 6)


def evaluate(config: OpenSegmentation, folder: Path, **inputs: Artifact) -> Report:
    folder.mkdir(parents=True)
    config.run(Context(config.name, folder, folder / "work", {name: one.path for name, one in inputs.items()}))
    report = Artifact.load(folder)
    assert isinstance(report, Report)
    return report


RULES = [{"type": "clip"}, {"type": "naclip"}, {"type": "naclip", "sigma": 1, "label": "near"}]


def test_models_and_rules_are_scored_on_the_same_pictures(tmp_path: Path) -> None:
    test, eva = (
        scenes(tmp_path / "test", 4),
        save_vision(build_vision("eva02_pico_patch8_32", num_classes=0, seed=0), tmp_path / "eva"),
    )
    models = {"clip": clip(tmp_path / "clip"), "tuned": clip(tmp_path / "tuned", 1)}
    fields = {"background": "ground", "short_side": 32, "refine": "pamr", "thresholds": [0.9, 0.1]}
    rules = [*RULES, {"type": "proxyclip", "encoder": "eva"}]
    report = evaluate(
        stage(models=["clip", "tuned"], rules=rules, **fields), tmp_path / "a", test=test, eva=eva, **models
    )
    names = [one.name for one in report.metrics if one.model == "clip"]
    assert names == [
        f"{rule}_{part}" for rule in ("clip", "naclip", "near", "proxyclip") for part in ("miou", "pixel_acc")
    ]
    assert all(one.n == 4 and one.low <= one.value <= one.high for one in report.metrics)
    assert {gap.test for gap in report.comparisons} == {"paired resamples"}
    record = json.loads((report.path / "results/test_clip_open_segmentation.json").read_text())
    assert record["thresholds"].keys() == {"clip", "naclip", "near", "proxyclip"}
    assert record["resize_mode"] == "shorter side 32, windows of 16"
    assert record["words"][-1] == ["ground"]
    titles = {panel.title for panel in load_panels(report.path)}
    assert {"Mean IoU by rule", "How to read these numbers", "Classes by IoU, rule clip", "Maps by rule"} <= titles
    assert (report.path / "predictions/images_near.parquet").exists()
    fewer = stage(**{**fields, "models": ["tuned", "clip"], "rules": RULES[2:]})
    again = evaluate(fewer, tmp_path / "b", test=test, **models)
    values = {(one.model, one.name): one.value for one in report.metrics}
    assert [one.value for one in again.metrics] == [values[one.model, one.name] for one in again.metrics]


def test_scores_are_those_of_its_maps(tmp_path: Path) -> None:
    """The whole chain written out again for one rule: one window, softmax, argmax, mean IoU over all pictures."""
    test, model = scenes(tmp_path / "test", 5), clip(tmp_path / "clip", image_size=32)
    report = evaluate(stage(rules=[{"type": "naclip"}], short_side=32), tmp_path / "a", test=test, clip=model)
    loaded = load_clip(model)
    reader = last_block_reader(loaded)
    words = F.normalize(loaded.encode_texts([f"a {name}" for name in test.class_names]), dim=-1)
    rows: dict[str, list[NDArray[np.int64]]] = {"truth": [], "found": []}
    for pixels, truth in annotated_pixels(test):
        with torch.no_grad():
            tokens = NaClip().build(None)(reader.read(loaded.pixels(pixels[None])), pixels[None])
            cosines = F.normalize(reader.embed(tokens), dim=-1) @ words.T
        scores = F.interpolate(cosines.permute(0, 3, 1, 2), (32, 32), mode="bilinear", align_corners=False)[0]
        rows["truth"].append(truth)
        rows["found"].append(scores.argmax(dim=0).numpy())
    truth, found = np.stack(rows["truth"]), np.stack(rows["found"])
    ious = [
        ((truth == k) & (found == k)).sum() / union
        for k in range(len(test.class_names))
        if (union := ((truth == k) | (found == k)).sum())
    ]
    assert report.metrics[0].value == pytest.approx(float(np.mean(ious)), abs=1e-9)


def annotated_pixels(data: AnnotatedImages) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    source = AnnotatedSource(data)
    return [(np.array(source.image(n)), source.semantic(n).astype(np.int64)) for n in range(len(source))]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 0.3}, "threshold: there is no background"),
        ({"as_background": ["a"]}, "as_background: there is no background"),
        ({"convention": "voc21", "ignore": ["a"]}, "convention sets ignore"),
        ({"rules": [{"type": "clip"}, {"type": "clip"}]}, "two are named 'clip'; give one a label"),
        ({"rules": [{"type": "nacilp"}]}, "did you mean 'naclip'"),
        ({"rules": [{"type": "proxyclip"}]}, "encoder"),
        (
            {"background": "sky", "threshold": 0.3, "thresholds": [0.1]},
            "thresholds: candidates are for threshold: held_out; got threshold: 0.3",
        ),
        ({"window": "whole", "stride": 0.25}, "stride: with window: whole there are no windows to move, got 0.25"),
        ({"window": 4}, "expected 8 pixels or more, got 4"),
        ({"resize_mode": "squash"}, "images keep their aspect ratio here, got squash"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"convention": "voc21"}, "test: expected 21 classes for convention voc21, got 2"),
        ({"ignore": ["dog"]}, "ignore: test has no class 'dog'; did you mean 'dig'?"),
        ({"background": "dig", "as_background": ["dig"]}, "as_background: class 'dig' is the background"),
        ({"ignore": ["dig"]}, "test: expected two or more classes, got 1"),
        ({"names": ["a"]}, r"names: expected 2 classes \(cat, dig, ...\), got 1"),
        ({"names": ["a, ", "b"]}, "names: class 'cat' has an empty word in 'a, '"),
        ({"names": ["a, b", "b"]}, "names: 'b' is a word of 'cat' and of 'dig'"),
    ],
)
def test_classes_that_do_not_fit_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluated_classes(stage(**fields), dataset(["cat", "dig"]))


def test_labels_without_maps_and_bad_pictures(tmp_path: Path) -> None:
    boxes = read(tmp_path / "boxes", coco(tmp_path / "coco", [{"bbox": [2, 1, 6, 4]}]))
    with pytest.raises(UserError, match=r"test: eval\.open_segmentation needs images with semantic labels, got boxes"):
        stage().preflight(Preflight({}, {"test": boxes.path}))
    for name in ("a", "b", "c"):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(16, 16).save(tmp_path / f"images/{name}.png")
        write_map(tmp_path / f"maps/{name}.png", np.arange(256).reshape(16, 16) % 2)
    made = read(tmp_path / "made", tmp_path / "images", annotations=str(tmp_path / "maps"), names=["up", "down"])
    (tmp_path / "images/b.png").write_bytes(b"no picture")
    report = evaluate(stage(max_bad_fraction=0.5), tmp_path / "report", test=made, clip=clip(tmp_path / "clip"))
    assert report.metrics[0].n == 2
    with pytest.raises(UserError, match=r"1 of 3 samples cannot be used \(max_bad_fraction is 0.05\)"):
        evaluate(stage(), tmp_path / "refused", test=made, clip=clip(tmp_path / "clip"))


def test_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    test, broken = scenes(tmp_path / "test", 2), build_clip(load_clip(clip(tmp_path / "fine")).config, seed=0)
    with torch.no_grad():
        broken.module.visual.ln_post.weight[0] = torch.nan  # type: ignore[union-attr,operator,index]
    with pytest.raises(UserError, match="clip, naclip: expected finite outputs, got NaN or infinity for"):
        evaluate(stage(), tmp_path / "report", test=test, clip=save_clip(broken, tmp_path / "clip"))


def test_it_joins_vfm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes(tmp_path / "made", 4)
    clip(tmp_path / "clip")
    clip(tmp_path / "tuned", 1)
    monkeypatch.chdir(tmp_path)
    words = ["clip", "tuned", "--data", "scenes=made/artifact", "--tasks", "open_segmentation"]
    few = "--set=scenes-open_segmentation.templates=['a {}']"
    planned = run_here("eval", *words, "--dry-run")
    assert planned.code == 0, planned.err
    (one,) = [part for part in yaml.safe_load(planned.out)["stages"] if part["kind"] == "eval.open_segmentation"]
    assert one["models"] == ["clip", "tuned"]
    done = run_here("eval", *words, few, "--quiet", "--name", "open")
    assert done.code == 0, done.err
    table = (tmp_path / "store/runs/open/results/results.csv").read_text().splitlines()
    assert "naclip_miou" in table[0]
    assert len(table) == 3
