"""Class names of tables: from a file, from a column of texts, or a hint at the column that has them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cli_world import run_here
from eval_world import NAMES, png
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.interfaces import Context, LabeledDataset

COUNT = 4  # images of each class


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table as the Hub keeps it: images, labels as numbers, and the names of the classes in another column."""
    file = tmp_path_factory.mktemp("hub") / "birds.parquet"
    numbers = [number for number in range(len(NAMES)) for _ in range(COUNT)]
    images = [{"bytes": png(NAMES[number], seed), "path": None} for seed, number in enumerate(numbers, 1)]
    names = [NAMES[number] for number in numbers]
    unique = [f"image {seed}" for seed in range(len(numbers))]
    pq.write_table(pa.table({"image": images, "label": numbers, "names": names, "note": unique}), file)
    return file


def import_labels(path: Path, folder: Path, **fields: object) -> tuple[LabeledDataset, list[int | None]]:
    stage = Labeled.model_validate({"name": "val", "path": str(path), **fields})
    dataset = stage.run(Context("val", folder, folder, {}, lambda event: None))
    source = open_dataset(dataset)
    return dataset, [source[number].label for number in range(len(source))]


def test_the_column_with_the_names_is_hinted_at_and_found(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the text column 'names' has {len(NAMES)} values: label_key: names"):
        Labeled(name="val", path=str(table)).preflight(None)
    done = run_here("data", table, "--out", tmp_path / "s.png")
    assert done.code == 0, done.err
    assert f"class_names: {', '.join(sorted(NAMES))}" in done.out


def test_class_names_are_read_from_a_file(table: Path, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(NAMES) + "\n\n")
    dataset, labels = import_labels(table, tmp_path / "a", class_names=str(file))
    listed, same_labels = import_labels(table, tmp_path / "b", class_names=list(NAMES))
    assert dataset.class_names == listed.class_names == list(NAMES)
    assert labels == same_labels == [number for number in range(len(NAMES)) for _ in range(COUNT)]


@pytest.mark.parametrize(("content", "message"), [(None, "one per line, .*no such"), ("a\n\nb", "class 1 is")])
def test_a_wrong_file_of_names_is_an_error(content: str | None, message: str, table: Path, tmp_path: Path) -> None:
    if content:
        (tmp_path / "n.txt").write_text(content)
    with pytest.raises(ValidationError, match=message):
        Labeled.model_validate({"name": "val", "path": str(table), "class_names": str(tmp_path / "n.txt")})


def test_a_column_of_texts_is_not_overruled_by_names_of_other_classes(table: Path, tmp_path: Path) -> None:
    copy = tmp_path / table.name
    copy.write_bytes(table.read_bytes())
    beside = tmp_path / "classnames.txt"
    beside.write_text("Other One\nOther Two\n")
    dataset, labels = import_labels(copy, tmp_path / "a", label_key="names")
    assert dataset.class_names == sorted(NAMES)
    assert None not in labels
    beside.write_text("\n".join(reversed(NAMES)))  # its own classes, in another order
    assert import_labels(copy, tmp_path / "b", label_key="names")[0].class_names == list(reversed(NAMES))
