"""`vfm.run`, `evaluate`, `embed` and `predict`: the same as the commands, as objects; a wrong call is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vfm
from cli_world import run_here, toys  # noqa: F401  (a fixture)
from dense_toy import checkpoint
from eval_world import NAMES, labeled, png, tiny_clip
from test_cli_dense import FACTS
from vfm.data import write_tar
from vfm.eval import read_embeddings
from vfm.interfaces import AnnotatedImages
from vfm.models import (
    PooledVision,
    build_vision,
    load_clip,
    load_vision,
    save_vision,
    set_class_names,
    vision_preprocess,
)

WORLD = {"stages": [{"kind": "shapes.classes", "name": "val", "num_samples": 12}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, a classifier, a detector, a segmenter, labelled images and files of images."""
    here = tmp_path_factory.mktemp("api")
    tiny_clip(here / "clip", 0)
    tiny_clip(here / "other", 1)
    model = build_vision("vit_pico_patch8_32", num_classes=7, seed=0)
    set_class_names(model, NAMES)
    save_vision(model, here / "classifier")
    labeled(here / "labeled", 21, broken=[3])
    (here / "flat").mkdir()
    for n, name in enumerate(NAMES):
        (here / "flat" / f"{name}.png").write_bytes(png(name, n + 1))
    data = AnnotatedImages.create(here / "data", **FACTS)
    checkpoint(here / "detector", data, tasks=["boxes", "masks"])
    checkpoint(here / "segmenter", data, tasks=["semantic"], image_size=12)
    pixels = np.full((12, 20, 3), 20, dtype=np.uint8)
    pixels[2:7, 8:14] = 220
    Image.fromarray(pixels).save(here / "other.png")
    return here


def test_importing_vfm_imports_neither_torch_nor_what_a_run_needs() -> None:
    code = (
        "import sys, vfm; assert 'torch' not in sys.modules and 'vfm.flow' not in sys.modules;"
        "from vfm import run, curate; assert 'torch' not in sys.modules; assert set(vfm.__all__) <= set(dir(vfm))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_gives_artifacts_and_metrics(toys: Path) -> None:  # noqa: F811
    done = vfm.run("r.yaml", set={"a.count": 5}, progress=False)
    assert done.stages == ["a", "b", "sum"]
    assert len(done["a"].values) == 5
    assert done["a"].path.name == "a"
    assert done.directory.name == "r@1"
    assert Path(done.page).is_file()
    again = vfm.run("r.yaml", set={"a.count": 5}, progress=False)
    assert (again.directory, again.table().num_rows) == (done.directory, 0)
    assert f"│ a     │ {done['a'].path.resolve().name}" in str(done)
    assert "<td " in done._repr_html_()
    with pytest.raises(vfm.UserError, match="r@1: no stage is named 'smu'; did you mean 'sum'"):
        done["smu"]


def test_a_recipe_may_be_a_mapping_with_paths(toys: Path) -> None:  # noqa: F811
    draw = {"stages": [{"kind": "toy.draw", "name": "a", "count": 3}]}
    first = vfm.run(draw, store=toys / "s", name="mine", progress=False)
    assert first.directory.name == "mine@1"
    sums = {"stages": [{"kind": "toy.add", "name": "sum", "inputs": [first["a"]]}]}
    assert vfm.run(sums, store=toys / "s", progress=False)["sum"].path.exists()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: vfm.run("nothing.yaml"), "no recipe 'nothing.yaml': neither a file nor a shipped recipe"),
        (lambda: vfm.run("r.yaml", set={"a.cuont": 3}), "set a.cuont=3: a.cuont: unknown key; did you mean 'count'?"),
        (lambda: vfm.run("r.yaml", set={"a.count": "many"}), 'a.count="many": a.count: expected an integer, got'),
        (lambda: vfm.run("r.yaml", set={"a.count": object()}), "expected plain values in a recipe: <object object at"),
        (lambda: vfm.run({"stages": [{"kind": "toy.draw"}]}), "the recipe:2: stages"),
        (lambda: vfm.run({}), "the recipe:1: "),
        (lambda: vfm.run(None), "expected a path, a name or an artifact, got a NoneType"),
        (lambda: vfm.run("r.yaml", set=["a.count=3"]), "set: expected a mapping of NAME.FIELD to values, got a list"),
    ],
)
def test_a_wrong_recipe_is_one_line(toys: Path, call: Callable[[], Any], line: str) -> None:  # noqa: F811
    with pytest.raises(vfm.UserError) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_call_that_a_worker_repeats_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing, vfm\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start(), child.join()\n"
        "else:\n"
        "    vfm.run('nothing.yaml')\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "vfm.run: workers import the script: put its calls below `if __name__ == '__main__':`" in done.stderr


def test_nothing_is_printed_without_progress(toys: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    vfm.run("r.yaml", progress=False)
    assert capfd.readouterr() == ("", "")
    done = vfm.run("r.yaml", store="other")
    out, err = capfd.readouterr()
    assert not out
    assert "sum" in err
    done.show()


def test_an_evaluation_is_that_of_the_command(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(name, {"png": png(name), "txt": f"a {name} one\nthe {name}".encode()}) for name in NAMES]
    write_tar(tmp_path / "pairs.tar", rows)
    models = [world / "clip", vfm.Artifact.load(world / "other")]
    done = vfm.evaluate(models, {"mine": "pairs.tar"}, "retrieval", progress=False)
    table = done.table().to_pylist()
    assert {row["model"] for row in table} == {"clip", "other"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in table)
    command = run_here("eval", world / "clip", world / "other", "--data", "mine=pairs.tar", "--tasks", "retrieval")
    assert command.code == 0, command.err
    assert command.out.count("✓") == command.out.count("cached")  # nothing ran again
    assert str(done).split("\n")[0].strip() in command.out
    assert (done.directory / "results/results.csv").is_file()
    with pytest.raises(vfm.UserError, match="mine has no captions in 'xx'"):
        vfm.evaluate(iter(models), {"mine": "pairs.tar"}, "retrieval", languages="xx", progress=False)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"models": []}, "evaluate: expected at least one model, got none"),
        ({"data": ()}, "no datasets: give data, or a suite"),
        ({"data": "no/where"}, "no/where: no such file or folder"),
        ({"tasks": "retrival"}, "tasks: no task 'retrival'; did you mean 'retrieval'?"),
        ({"models": [5]}, "models: expected paths or artifacts, got a int"),
    ],
)
def test_a_wrong_evaluation_is_one_line(world: Path, tmp_path: Path, given: dict[str, Any], line: str) -> None:
    settings = {"models": world / "clip", "data": world / "labeled", "tasks": "zero_shot", **given}
    with pytest.raises(vfm.UserError) as caught:
        vfm.evaluate(**settings, store=tmp_path, progress=False)
    assert line in str(caught.value)


def test_embeddings_are_those_of_the_command(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "command.parquet"
    assert run_here("embed", world / "clip", world / "labeled", "--out", file, "--max-bad-fraction", "0.1").code == 0
    found = vfm.embed(world / "clip", vfm.Artifact.load(world / "labeled"), max_bad_fraction=0.1, progress=False)
    known = read_embeddings(file)
    assert (found.keys, found.skipped) == (known.keys, {"unreadable_image": 1})
    assert np.array_equal(found.vectors, known.vectors.numpy())
    saved = read_embeddings(found.save(tmp_path / "ours.parquet"))
    assert (saved.model, saved.texts) == (known.model, known.texts)
    assert found.title.startswith("20 embeddings of width")


def test_images_texts_and_loaded_models_are_embedded(world: Path) -> None:
    files = [world / "flat" / f"{name}.png" for name in NAMES[:3]]
    clip = load_clip(world / "clip")
    by_path, by_image = vfm.embed(world / "clip", files), vfm.embed(clip, [Image.open(file) for file in files])
    assert np.array_equal(by_path.vectors, by_image.vectors)
    assert by_path.keys == [str(file) for file in files]
    texts = vfm.embed(clip, texts=["a red one", "a <b>blue</b> one"])
    assert np.allclose(texts.vectors, clip.encode_texts(["a red one", "a <b>blue</b> one"]).numpy())
    assert "a &lt;b&gt;blue&lt;/b&gt; one" in texts._repr_html_()
    assert "<b>blue" not in texts._repr_html_()


def test_arrays_generators_and_a_single_image_are_embedded_in_order(world: Path) -> None:
    files = sorted((world / "flat").glob("*.png"))
    expected = vfm.embed(world / "clip", files)
    for given in ((world / "flat" / file.name for file in files), np.array([str(file) for file in files])):
        found = vfm.embed(world / "clip", given, batch_size=3)
        assert found.keys == expected.keys
        assert np.allclose(found.vectors, expected.vectors, atol=1e-6)
    assert vfm.embed(world / "clip", Image.open(files[1]), device="cpu").keys == ["image 0"]
    assert vfm.embed(world / "clip", map(Image.open, files), batch_size=3).keys[-1] == f"image {len(files) - 1}"
    words = ["a red one", "a blue one"]
    by_words = vfm.embed(world / "clip", texts=words).vectors
    for several in (iter(words), np.array(words)):
        assert np.array_equal(vfm.embed(world / "clip", texts=several).vectors, by_words)


def test_an_open_image_is_seen_as_its_file(world: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    Image.fromarray(np.full((32, 32), 9000, np.uint16)).save(tmp_path / "grey16.png")
    for file in tmp_path.iterdir():
        by_path, by_image = (vfm.embed(world / "clip", [one]).vectors for one in (file, Image.open(file)))
        assert np.array_equal(by_path, by_image)


def test_a_loaded_model_in_training_mode_is_evaluated(world: Path) -> None:
    module = build_vision("vit_pico_patch8_32", num_classes=7, seed=0, drop_rate=0.5)
    encoder, image = PooledVision(module.train(), vision_preprocess(module)), world / "flat" / "red.png"
    first, second = (vfm.predict(encoder, image).scores for _ in range(2))
    assert torch.equal(first, second)
    assert module.training


def test_predictions_are_those_of_the_command(world: Path, tmp_path: Path) -> None:
    image = world / "flat" / "red.png"
    found = vfm.predict(world / "clip", image, NAMES, top=2)
    command = run_here("predict", world / "clip", image, "--classes", ",".join(NAMES), "--top", "2")
    shown = [line.split(maxsplit=1) for line in command.out.splitlines()[1:]]
    assert [(f"{row['probability']:.3f}", row["label"]) for row in found.table().to_pylist()] == [
        (score, label) for score, label in shown
    ]
    assert found.scores.shape == (1, len(NAMES))
    assert torch.allclose(found.scores.sum(1), torch.ones(1))
    prompts = tmp_path / "cupl.json"
    prompts.write_text(json.dumps({name: [f"a photo of a {name}."] for name in NAMES}))
    by_sentences = vfm.predict(world / "clip", image, prompts=prompts)
    assert by_sentences.labels == list(NAMES)
    torch.testing.assert_close(by_sentences.scores, found.scores)
    few = run_here("predict", world / "clip", image, "--prompts", prompts, "--classes", "red,grey")
    assert (few.code, few.err.splitlines()) == (
        2,
        [f"error: {prompts}: no sentences for 'grey'; did you mean 'green'?"],
    )
    for texts in ({"prompts": prompts}, {"template": "a {}"}):
        with pytest.raises(vfm.UserError, match="prompts and templates are for CLIP models; it is an encoder without"):
            vfm.predict(world / "classifier", image, **texts)
    own = vfm.predict(world / "classifier", [image, Image.open(image)])
    assert own.images == [str(image), "image 1"]
    assert torch.equal(own.scores[0], own.scores[1])
    assert torch.allclose(own.scores.sum(1), torch.ones(2))


def test_independent_labels_have_probabilities_of_their_own(world: Path, tmp_path: Path) -> None:
    model, image = load_vision(world / "classifier"), world / "flat" / "red.png"
    set_class_names(model, NAMES, independent=True)
    save_vision(model, tmp_path / "tags")
    logits = PooledVision(model, vision_preprocess(model)).logits([Image.open(image)])
    torch.testing.assert_close(vfm.predict(tmp_path / "tags", image).scores, logits.sigmoid())


def test_the_nearest_of_an_index_and_a_warning_of_another_model(world: Path, tmp_path: Path) -> None:
    index = vfm.embed(world / "clip", world / "flat", progress=False).save(tmp_path / "i.parquet")
    image = world / "flat" / "green.png"
    best = vfm.predict(world / "clip", image, index=index, top=1).table().to_pylist()
    assert best == [{"image": str(image), "rank": 1, "label": "green.png", "similarity": pytest.approx(1)}]
    with pytest.warns(UserWarning, match=r"i.parquet: made with .*clip, not with .*other"):
        vfm.predict(world / "other", image, index=index)
    with pytest.raises(vfm.UserError, match=r"give either a template .* or an index"):
        vfm.predict(world / "clip", image, index=index, template="a {}")


def test_objects_and_regions_of_models_with_a_dense_head(world: Path) -> None:
    (found,) = vfm.predict(world / "detector", world / "other.png").table().to_pylist()
    assert {**found, "image": ""} == {
        "image": "", "label": "bright", "score": pytest.approx(0.9), "left": 8, "top": 2, "right": 14, "bottom": 7,
    }  # fmt: skip
    regions = vfm.predict(world / "segmenter", world / "other.png")
    assert sum(row["share"] for row in regions.rows) == pytest.approx(1)
    assert regions.found[0].shape == (12, 20)
    none = vfm.predict(world / "detector", world / "other.png", min_score=0.95)
    assert none.table().column_names == ["image", "label", "score", "left", "top", "right", "bottom"]
    assert none.table().num_rows == 0
    assert none.title == "0 objects or regions in 1 images; none in 1 of them"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda w: vfm.predict(w / "clip", w / "flat/red.png"), "a CLIP model needs classes to choose from; give"),
        (lambda w: vfm.predict(w / "clip", w / "flat/rd.png", NAMES), "rd.png: no such image"),
        (lambda w: vfm.predict(w / "clip", [5], NAMES), "expected an image or the path of one, got a int"),
        (lambda w: vfm.predict(w / "clip", 5, NAMES), "expected an image or the path of one, got a int"),
        (
            lambda w: vfm.predict(w / "clip", np.zeros((8, 8, 3), np.uint8), NAMES),
            "got a ndarray; make images of arrays with PIL.Image.fromarray",
        ),
        (
            lambda w: vfm.embed(w / "clip", torch.zeros(1, 3, 8, 8)),
            "got a Tensor; make images of tensors with torchvision.transforms.functional.to_pil_image",
        ),
        (
            lambda w: vfm.view(w / "clip", [np.zeros((8, 8, 3), np.uint8)], w / "maps"),
            "got a ndarray; make images of arrays with PIL.Image.fromarray",
        ),
        (lambda w: vfm.view(w / "clip", 5, w / "maps"), "expected an image or the path of one, got a int"),
        (lambda w: vfm.view(w / "clip", [], w / "maps"), "images: expected at least one, got none"),
        (lambda w: vfm.list_models(3), "name: expected a text, got 3"),
        (
            lambda w: vfm.run({"stages": [{"kind": "data.digits", "name": "d"}]}, store=w / "none", track="wandbb"),
            "got wandbb",
        ),
        (lambda w: vfm.evaluate(None, w / "labeled"), "models: expected paths or artifacts, got a NoneType"),
        (lambda w: vfm.predict(w / "clip", w / "flat/red.png", ["one"]), "classes: expected at least two names"),
        (lambda w: vfm.predict(w / "clip", w / "flat/red.png", NAMES, index="i"), "give either classes"),
        (lambda w: vfm.predict(w / "detector", w / "other.png", NAMES), "it has a dense head: no classes"),
        (lambda w: vfm.predict(w / "clip", w / "flat/red.png", 5), "classes: expected at least two names, got 5"),
        (lambda w: vfm.predict(w / "clip", [], NAMES), "images: expected at least one, got none"),
        (lambda w: vfm.predict(w / "clip", w / "flat/red.png", NAMES, top=0), "top: must be at least 1, got 0"),
        (
            lambda w: vfm.predict(torch.nn.Linear(1, 1), w / "flat/red.png"),
            "a path, a name or an artifact, got a Linear",
        ),
        (lambda w: vfm.embed(w / "clip"), "embed: give either data (images) or texts"),
        (lambda w: vfm.embed(w / "clip", []), "embed: expected at least one image, got none"),
        (lambda w: vfm.embed(w / "clip", texts="a text"), "embed: texts: expected a list, got 'a text'"),
        (lambda w: vfm.embed(w / "clip", 5), "embed: data: expected a list, got 5"),
        (lambda w: vfm.embed(w / "clip", ["a"], batch_size=0), "embed: batch_size: must be at least 1, got 0"),
        (lambda w: vfm.embed(w / "classifier", texts=["a"]), "it has no text tower; texts need a CLIP model"),
        (lambda w: vfm.embed(w / "clip", w / "nothing", progress=False), "nothing: no such file or folder"),
        (lambda w: vfm.embed(w / "labeled", w / "flat", progress=False), "expected a model, got a LabeledDataset"),
        (lambda w: vfm.embed(w / "clip", w / "flat", device="gpu", progress=False), "device gpu: choose from auto"),
    ],
)
def test_a_wrong_call_is_one_line(world: Path, call: Callable[[Path], Any], line: str) -> None:
    with pytest.raises(vfm.UserError) as caught:
        call(world)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pandas_is_optional(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vfm.embed(world / "clip", [world / "flat" / "red.png"])
    monkeypatch.setattr("vfm.api.results.find_spec", lambda name: None)
    with pytest.raises(vfm.UserError, match="to_pandas needs pandas: pip install pandas"):
        found.to_pandas()


def test_every_public_name_exists_and_others_are_attribute_errors() -> None:
    assert all(getattr(vfm, name) for name in vfm.__all__)
    with pytest.raises(AttributeError, match="module 'vfm' has no attribute 'fitt'"):
        vfm.fitt  # noqa: B018
    assert not hasattr(vfm, "nothing")


def test_control_characters_and_markup_are_shown_as_they_are(world: Path) -> None:
    found = vfm.embed(load_clip(world / "clip"), texts=["[red]a\x1b[31m", "\u202eb"])
    assert "[red]a\\x1b[31m" in str(found)
    assert "\\u202eb" in str(found)
    assert "\\u202eb" in found._repr_html_()
