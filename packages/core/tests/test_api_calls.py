"""The functions of `vfm` as Python calls: what they take, what they say, and where their warnings point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

import vfm
from cli_world import toys  # noqa: F401  (a fixture)
from eval_world import labeled, png, tiny_clip
from vfm.statistics import t_interval


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP models, two of them of one folder name, labelled images and a picture."""
    here = tmp_path_factory.mktemp("calls")
    for number, name in enumerate(("a/clip", "b/clip", "one", "two")):
        tiny_clip(here / name, number)
    labeled(here / "labeled", 14)
    (here / "red.PNG").write_bytes(png("red"))
    return here


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: vfm.evaluate("a/clip"), "no datasets: give data, or a suite and its root"),
        (
            lambda: vfm.evaluate(["a/clip", "b/clip"], "labeled"),
            "two of the models and datasets are named 'clip'; give another name: NAME=PATH, from Python {NAME: PATH}",
        ),
        (lambda: vfm.evaluate("a/clip", "labeled", "zeroshot"), "tasks: no task 'zeroshot'; did you mean 'zero_shot'?"),
        (lambda: vfm.evaluate("a/clip", "nodata"), "data nodata: no such path, and no suite has such a dataset"),
        (lambda: vfm.evaluate("a/clip", "labeled", resize="crop"), "resize: 'crop' is not a valid mode; known: "),
        (
            lambda: vfm.evaluate("a/clip", ["labeled", "labeled"], train="labeled"),
            "train needs exactly one dataset as data, and no suite",
        ),
        (
            lambda: vfm.run({"stages": [{"kind": "shapes.classes", "name": "q"}]}, set={"q.num_samples": 0}),
            "set q.num_samples=0: q.num_samples: must be at least 1, got 0",
        ),
        (lambda: vfm.run("diva_published", set={"x.y": 3}), "set x.y=3: no stage is named 'x'"),
        (
            lambda: vfm.curate(["a red boat", "\ud800 x"], progress=False),
            r"captions[1]: expected Unicode, got half a surrogate pair: '\ud800 x'",
        ),
    ],
)
def test_messages_are_those_of_a_call(
    world: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], line: str
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(vfm.UserError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "--" not in str(caught.value)


def test_models_of_one_folder_name_are_evaluated_by_names_of_a_mapping(world: Path, tmp_path: Path) -> None:
    models = {"one": world / "a/clip", "two": world / "b/clip"}
    done = vfm.evaluate(models, world / "labeled", "zero_shot", store=tmp_path, progress=False)
    assert set(done.table()["model"].to_pylist()) == {"one", "two"}


def test_numbers_of_numpy_are_those_of_a_recipe(tmp_path: Path) -> None:
    world = {"image_size": np.uint8(32)}
    stage = {"kind": "shapes.classes", "name": "val", "num_samples": np.int64(12), "world": world}
    first = vfm.run({"stages": [stage]}, store=tmp_path, progress=False)
    plain = {**stage, "num_samples": 12, "world": {"image_size": 32}}
    second = vfm.run({"stages": [plain]}, store=tmp_path, progress=False)
    assert first["val"].path.resolve() == second["val"].path.resolve()
    with pytest.raises(vfm.UserError, match=r"expected plain values in a recipe: array\(\[1, 2\]\) is a ndarray"):
        vfm.run({"stages": [{**stage, "num_samples": np.array([1, 2])}]}, store=tmp_path, progress=False)


def test_the_path_of_one_image_is_that_image(world: Path) -> None:
    by_path, by_list = (vfm.embed(world / "a/clip", given) for given in (world / "red.PNG", [world / "red.PNG"]))
    assert by_path.keys == by_list.keys == [str(world / "red.PNG")]
    assert np.array_equal(by_path.vectors, by_list.vectors)
    assert np.array_equal(vfm.embed(world / "a/clip", Image.open(world / "red.PNG")).vectors, by_list.vectors)


def test_a_tag_may_follow_the_name_of_a_model(world: Path) -> None:
    after = vfm.embed("resnet10t,none", world / "red.PNG")
    apart = vfm.embed("resnet10t", world / "red.PNG", pretrained="none")
    assert after.model == apart.model == "resnet10t none"
    assert np.array_equal(after.vectors, apart.vectors)


def test_a_warning_points_at_the_call(toys: Path) -> None:  # noqa: F811
    (toys / "words.txt").write_text("some words")
    recipe = {"stages": [{"kind": "toy.read", "name": "words", "path": str(toys / "words.txt")}]}
    with pytest.warns(UserWarning, match="words: reading is slow") as caught:
        vfm.run(recipe, progress=False)
    assert [one.filename for one in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:.* classes have no image")
def test_means_over_seeds_are_in_a_table_of_their_own(world: Path, tmp_path: Path) -> None:
    models = [str(world / "one"), str(world / "two")]
    recipe = {
        "seeds": [0, 1, 2],
        "stages": [
            {"kind": "shapes.classes", "name": "val", "num_samples": 60},
            {"kind": "eval.zero_shot", "name": "scores", "models": models, "data": "val"},
        ],
    }
    run = vfm.run(recipe, store=tmp_path, progress=False)
    rows, means = run.table().to_pylist(), run.means().to_pylist()
    assert {row["report"] for row in rows} == {"scores@0", "scores@1", "scores@2"}
    assert {row["report"] for row in means} == {"scores"}
    assert len(rows) == 3 * len(means)
    assert len({row["value"] for row in rows}) > 3
    for row in means:
        values, first = (_values(rows, row["metric"], model) for model in (row["model"], "one"))
        assert (row["mean"], row["seeds"]) == (pytest.approx(fmean(values)), 3)
        assert (row["low"], row["high"]) == pytest.approx(t_interval(values))
        assert (row["task"], row["dataset"], row["unit"]) == ("zeroshot_classification", "val", "share")
        assert (row["p_value"] is None) == (row["model"] == "one")
        if row["model"] == "two" and len({round(new - old, 9) for new, old in zip(values, first, strict=True)}) > 1:
            assert row["p_value"] == pytest.approx(ttest_rel(values, first).pvalue)


def _values(rows: list[dict[str, Any]], metric: str, model: str) -> list[float]:
    return [row["value"] for row in rows if (row["metric"], row["model"]) == (metric, model)]


def test_a_run_without_seeds_has_no_means(world: Path, tmp_path: Path) -> None:
    run = vfm.evaluate(world / "one", world / "labeled", "zero_shot", store=tmp_path, progress=False)
    assert (run.table().num_rows > 0, run.means().num_rows) == (True, 0)
    assert run.means().column_names[5:9] == ["mean", "low", "high", "seeds"]
