"""Images that a table names without their extension, and FiftyOne's labels of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_world import run_here
from data_samples import context
from peer_annotations import fiftyone_classes
from peer_files import NAMES, NUM_SAMPLES, images, jpeg, kaggle_csv, table
from vfm.base import UserError
from vfm.data import Source, open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.flow.recognition.formats import recognise
from vfm.interfaces import Preflight


def imported(tmp_path: Path, fields: dict[str, Any]) -> tuple[Source, list[str]]:
    """Import labelled images. The second value has the names of the classes."""
    stage = Labeled.model_validate({**fields, "name": "data"})
    stage.preflight(Preflight({}, {}))
    dataset = stage.run(context(tmp_path / "store", "data"))
    return open_dataset(dataset), dataset.class_names


def named(tmp_path: Path, fields: dict[str, Any]) -> dict[bytes, str]:
    """Import labelled images, and find the name of each by its bytes."""
    source, names = imported(tmp_path, fields)
    samples = [source[number] for number in range(len(source))]
    return {sample.image: names[sample.label or 0] for sample in samples}


EXPECTED = {jpeg(number): NAMES[number % 4] for number in range(NUM_SAMPLES)}


def test_a_competition_s_table_is_recognised_with_the_extension(tmp_path: Path) -> None:
    path = kaggle_csv(tmp_path)
    fields = recognise(str(path))
    assert fields == {
        "kind": "data.labeled",
        "path": str(path),
        "image_key": "{image_id}.jpg",
        "image_root": str(tmp_path / "train_images"),
    }
    assert named(tmp_path, {**fields, "class_names": NAMES}) == EXPECTED


@pytest.mark.parametrize("folder", ["", "images/train"])
def test_a_template_names_images_by_any_column(tmp_path: Path, folder: str) -> None:
    files = images(tmp_path / folder, "im_{}.jpg")
    rows: list[list[object]] = [[n, NAMES[n % 4], "train"] for n in range(len(files))]
    path = table(tmp_path / "t.csv", ["id", "class", "split"], rows)
    location = "images/{split}/im_{id}.jpg" if folder else "im_{id}.jpg"
    assert named(tmp_path, {"kind": "data.labeled", "path": str(path), "image_key": location}) == EXPECTED


def test_a_wrong_column_of_a_template_is_answered_by_the_columns(tmp_path: Path) -> None:
    path = kaggle_csv(tmp_path)
    with pytest.raises(UserError, match=r"no column 'id' \(image_key\); the columns are image_id, label$"):
        imported(tmp_path, {"path": str(path), "image_key": "{id}.jpg", "class_names": NAMES})


def test_labels_that_are_also_names_of_files_are_not_the_images(tmp_path: Path) -> None:
    images(tmp_path / "photos", "{}.jpg")  # 0.jpg to 3.jpg exist, as do the labels 0 to 3
    rows: list[list[object]] = [[n % 4, f"{n}"] for n in range(NUM_SAMPLES)]
    fields = recognise(str(table(tmp_path / "t.csv", ["label", "code"], rows)))
    assert fields["image_key"] == "{code}.jpg"


def test_labels_of_fiftyone_in_every_form(tmp_path: Path) -> None:
    folder = fiftyone_classes(tmp_path)
    fields = recognise(str(folder))
    assert fields == {"kind": "data.labeled", "path": str(folder)}
    assert named(tmp_path, fields) == EXPECTED
    assert imported(tmp_path / "order", fields)[1] == NAMES  # in the order of the file, which is not the alphabet's
    assert recognise(str(folder / "labels.json"))["kind"] == "data.labeled"
    record = json.loads((folder / "labels.json").read_text())
    forms = {
        "names": {stem: NAMES[label] for stem, label in record["labels"].items()},
        "records": {stem: {"label": NAMES[label], "confidence": 0.5} for stem, label in record["labels"].items()},
    }
    for name, labels in forms.items():
        (folder / "labels.json").write_text(json.dumps({"classes": None, "labels": labels}))
        assert named(tmp_path / name, fields) == EXPECTED


def test_damaged_entries_of_fiftyone_are_bad_samples(tmp_path: Path) -> None:
    folder = fiftyone_classes(tmp_path)
    record = json.loads((folder / "labels.json").read_text())
    record["labels"] |= {"absent": 0, "00001": None, "../../x": 1}
    (folder / "labels.json").write_text(json.dumps(record))
    ctx = context(tmp_path / "store", "data")
    stage = Labeled(name="data", path=str(folder), class_names=NAMES, max_bad_fraction=1.0)
    assert len(open_dataset(stage.run(ctx))) == NUM_SAMPLES - 1
    assert ctx.bad == {"missing_image": 1, "missing_label": 1, "unsafe_path": 1}
    record["labels"]["00002"] = 99
    (folder / "labels.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="1 labels do not fit the 4 class names"):
        stage.run(context(tmp_path / "again", "data"))
    (folder / "labels.json").write_text('{"classes": ["a"], "labels": [1]}')
    done = run_here("data", folder, "--kind", "data.labeled")
    assert done.code == 2
    assert "expected `labels`, a label for each image, and a list `classes`" in done.errors[-1]
