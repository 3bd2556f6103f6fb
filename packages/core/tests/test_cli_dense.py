"""`vfm predict --draw` with models that have a dense head: lists, pictures, COCO's results; a mistake is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_world import run_here
from dense_toy import checkpoint
from vfm.data.annotated import decode_mask
from vfm.interfaces import AnnotatedImages

FACTS = {
    "num_samples": 1, "format": "coco", "labels": ["boxes"], "class_names": ["bright", "dark"], "class_ids": [1, 2],
    "things": [True, True],
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two pictures with a bright rectangle, and models of different tasks."""
    folder = tmp_path_factory.mktemp("world")
    for name, left in (("000139", 3), ("other", 8)):
        pixels = np.full((12, 20, 3), 20, dtype=np.uint8)
        pixels[2:7, left : left + 6] = 220
        Image.fromarray(pixels).save(folder / f"{name}.png")
    data = AnnotatedImages.create(folder / "data", **FACTS)
    checkpoint(folder / "detector", data, tasks=["boxes", "masks"])
    checkpoint(folder / "segmenter", data, tasks=["semantic"], image_size=12)
    checkpoint(folder / "panoptic", data, tasks=["panoptic"])
    return folder


def test_objects_are_listed_drawn_and_written_as_coco_results(world, tmp_path):
    images = [world / "000139.png", world / "other.png"]
    done = run_here("predict", world / "detector", *images, "--draw", "--out", tmp_path / "out")
    assert done.code == 0
    assert "   0.900  bright  3 2 9 7" in done.out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [one["image_id"] for one in results] == [139, 1]  # the number in the name, else the place
    assert results[0]["bbox"] == [3, 2, 6, 5]
    assert (results[0]["category"], results[0]["category_id"]) == ("bright", 0)
    mask = decode_mask(results[1]["segmentation"]["counts"].encode(), 12, 20)
    assert mask[2:7, 8:14].all()
    assert mask.sum() == 30
    before, drawn = np.asarray(Image.open(images[0])), Image.open(tmp_path / "out/000139.png")
    enlarged = np.asarray(drawn.resize((20, 12), Image.Resampling.NEAREST))
    assert np.array_equal(enlarged[9:, 12:], before[9:, 12:])  # nothing is drawn far away from the object
    assert (enlarged[3:6, 4:8] != before[3:6, 4:8]).any(axis=-1).all()


def test_two_images_never_have_one_id(world, tmp_path):
    (tmp_path / "0.png").symlink_to(world / "other.png")
    images = [world / "000139.png", tmp_path / "0.png", world / "other.png"]
    for files, ids in ((images, [139, 0, 2]), ([images[2], images[1]], [0, 1])):
        assert run_here("predict", world / "detector", *files, "--draw", "--out", tmp_path / "out").code == 0
        assert [one["image_id"] for one in json.loads((tmp_path / "out/results.json").read_text())] == ids


def test_without_draw_nothing_is_written_and_low_scores_are_left_out(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("predict", world / "detector", world / "other.png")
    assert "bright" in done.out
    assert not list(tmp_path.iterdir())
    none = run_here("predict", world / "detector", world / "other.png", "--min-score", "0.95").out
    assert none.splitlines() == [str(world / "other.png"), "  no object with a score of at least 0.95"]


@pytest.mark.parametrize("model", ["segmenter", "panoptic"])
def test_maps_are_drawn_with_the_share_of_each_class(world, tmp_path, model):
    done = run_here("predict", world / model, world / "other.png", "--draw", "--out", tmp_path / "out")
    shares = {line.split()[2]: float(line.split()[0]) for line in done.out.splitlines() if "%" in line}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert shares["bright"] == pytest.approx(12.5, abs=1.5)
    assert (tmp_path / "out/other.png").is_file()
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["{}/detector", "{}/other.png", "--classes", "a,b"], "it has a dense head: no classes, template, prompts"),
        (["{}/detector", "{}/other.png", "--template", "a {}"], "it has a dense head: no classes, template, prompts"),
        (
            ["{}/data", "{}/other.png", "--draw"],
            "expects the folder of a model with a dense head, as eva.detect's, got an",
        ),
        (["{}/none", "{}/other.png", "--draw"], "of a model with a dense head, as eva.detect's, got no folder"),
        (["{}/detector", "{}/data", "--draw"], "data: no images found"),
        (["{}/detector", "{}/none.png", "--draw"], "none.png: no such image"),
        (["{}/detector", "{}/other.png", "--draw", "--out", "{}/other.png"], "expected a folder, got a file"),
    ],
)
def test_a_mistake_is_one_line(world, words, line):
    done = run_here("predict", *(word.format(world) for word in words))
    assert done.code == 2
    assert line in done.err.replace("\n", " ")


def test_a_missing_image_is_named_before_torch_is_imported():
    code = (
        "import sys; from typer.testing import CliRunner; from vfm.cli import app\n"
        "done = CliRunner().invoke(app, ['predict', 'model', 'nowhere.jpg'])\n"
        "print(done.exit_code, done.output.strip(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 error: nowhere.jpg: no such image False"
