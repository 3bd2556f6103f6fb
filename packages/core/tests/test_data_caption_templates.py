"""Captions filled in from columns, in every format, and by every command that reads captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from cli_world import run_here
from data_samples import context
from eval_world import NAMES, png, tiny_clip
from vfm.base import UserError
from vfm.data import open_dataset, write_tar
from vfm.data.pairs.stages import Pairs
from vfm.data.samples.caption_templates import filled
from vfm.eval.encode.embeddings import read_embeddings
from vfm.interfaces import Preflight

TEMPLATE = "a photo of a {name}, {year}"
EXPECTED = [f"a photo of a {name}, {2000 + number}" for number, name in enumerate(NAMES)]
ROWS = [{"name": name, "year": 2000 + number} for number, name in enumerate(NAMES)]


def csv_table(folder: Path) -> tuple[Path, str]:
    (folder / "images").mkdir()
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "name", "year"])
        writer.writeheader()
        for row in ROWS:
            (folder / "images" / f"{row['name']}.png").write_bytes(png(row["name"]))
            writer.writerow({"image": f"images/{row['name']}.png", **row})
    return folder / "t.csv", TEMPLATE


def parquet(folder: Path) -> tuple[Path, str]:
    rows = [{"image": png(row["name"]), **row} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return folder / "t.parquet", TEMPLATE


def class_labels(folder: Path) -> tuple[Path, str]:
    """Write integers, whose names `datasets` keeps in the schema."""
    rows = [{"image": png(row["name"]), "label": n, "year": row["year"]} for n, row in enumerate(ROWS)]
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}})}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(about), folder / "t.parquet")
    return folder / "t.parquet", "a photo of a {label}, {year}"


def tar_with_json(folder: Path) -> tuple[Path, str]:
    rows = [(f"{n}", {"png": png(row["name"]), "json": json.dumps(row).encode()}) for n, row in enumerate(ROWS)]
    write_tar(folder / "t.tar", rows)
    return folder / "t.tar", "a photo of a {json.name}, {json.year}"


def tar_with_classes(folder: Path) -> tuple[Path, str]:
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    rows = []
    for number, row in enumerate(ROWS):
        members = {"png": png(row["name"]), "cls": str(number).encode(), "year": str(row["year"]).encode()}
        rows.append((str(number), members))
    write_tar(folder / "t.tar", rows)
    return folder / "t.tar", "a photo of a {cls}, {year}"


def class_folders(folder: Path) -> tuple[Path, str]:
    for row in ROWS:
        (folder / "set" / row["name"]).mkdir(parents=True)
        (folder / "set" / row["name"] / "0.png").write_bytes(png(row["name"]))
        (folder / "set" / row["name"] / "0.year").write_text(f"{row['year']}\n")
    return folder / "set", "a photo of a {label}, {year}"


FORMATS = [csv_table, parquet, class_labels, tar_with_json, tar_with_classes, class_folders]


def open_pairs(tmp_path: Path, path: Path, texts: object):
    stage = Pairs.model_validate({"name": "pool", "path": str(path), "texts": texts, "max_bad_fraction": 1.0})
    stage.preflight(Preflight({}, {}))
    return open_dataset(stage.run(context(tmp_path / "store", "pool")))


@pytest.mark.parametrize("write", FORMATS)
def test_templates_are_filled_in_from_every_format(tmp_path: Path, write: Callable[[Path], tuple[Path, str]]) -> None:
    path, template = write(tmp_path)
    source = open_pairs(tmp_path, path, template)
    assert len(source) == len(NAMES)
    captions = []
    for number in range(len(source)):
        captions += source[number].texts["en"]
    assert sorted(captions) == sorted(EXPECTED)
    in_shard = source.texts_of_shard(0)["text"].to_pylist()
    assert sorted(in_shard) == sorted(EXPECTED)  # the way of curation, by columns where the format has them


def test_a_table_of_captions_alone_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in [*ROWS, {"year": 1}]))
    source = open_pairs(tmp_path, tmp_path / "t.jsonl", {"en": TEMPLATE, "de": "{name}"})
    bad = []
    rows = source.texts_of_shard(0, lambda reason, where: bad.append(reason)).to_pylist()
    assert [row["text"] for row in rows if row["language"] == "en"] == EXPECTED
    assert [row["text"] for row in rows if row["language"] == "de"] == list(NAMES)
    assert bad == ["missing_caption"]


def test_an_absent_number_of_a_table_of_pandas_makes_no_caption() -> None:
    assert filled("a photo of {year}", {"year": float("nan")}.get, {}) == []


def test_values_of_every_type() -> None:
    values = {"one": " x ", "many": ["a", " ", "b"], "number": 3, "share": 0.5, "none": None, "empty": "", "class": 1}
    names = {"class": ["cat", "dog"]}
    assert filled("{one} {many}", values.get, names) == ["x a", "x b"]
    assert filled("{{{number}}} {share}", values.get, names) == ["{3} 0.5"]
    assert filled("a {class}", values.get, names) == ["a dog"]
    assert filled("a {none}", values.get, names) == filled("{one} {empty}", values.get, names) == []
    assert filled("a {class}", {"class": 2}.get, names) == []  # no such class
    assert len(filled("{a} {b}", {"a": ["x"] * 50, "b": ["y"] * 50}.get, {})) == 100  # bounded


def test_a_sample_without_a_value_is_a_missing_caption(tmp_path: Path) -> None:
    members = [{"png": png(NAMES[0]), "json": json.dumps({"name": name}).encode()} for name in "a "]
    rows = [(str(number), row) for number, row in enumerate(members)]
    write_tar(tmp_path / "t.tar", rows)
    stage = Pairs.model_validate(
        {"name": "pool", "path": str(tmp_path / "t.tar"), "texts": "a {json.name}", "max_bad_fraction": 1.0}
    )
    ctx = context(tmp_path / "store", "pool")
    assert len(open_dataset(stage.run(ctx))) == 1
    assert ctx.bad == {"missing_caption": 1}


@pytest.mark.parametrize("template", ["a {}", "a {name", "a name}", "a {name:>5}", "a {name!r}", "a {{name}}"])
def test_wrong_templates_are_refused_in_one_line(template: str) -> None:
    expected = r"texts\.en\n.*expected columns in braces, as in 'a photo of a \{name\}'"
    with pytest.raises(ValidationError, match=expected):
        Pairs.model_validate({"name": "pool", "path": "x", "texts": template})


@pytest.mark.parametrize(
    ("write", "template", "expected"),
    [
        (csv_table, "a {nmae}", r"no column 'nmae' \(texts or label_key\); the columns are image, name, year"),
        (parquet, "a {nmae}", "no column 'nmae'; the columns are image, name, year"),
        (tar_with_json, "a {json.nmae}", r"expected captions en in a \{json.nmae\}.*; the first json has name, year"),
        (class_folders, "a {lable}", r"expected captions en in a \{lable\}.*\{label\} in a template"),
    ],
)
def test_a_wrong_column_is_one_line_with_the_columns(tmp_path: Path, write, template: str, expected: str) -> None:
    path, _ = write(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        open_pairs(tmp_path, path, template)
    assert "\n" not in str(caught.value)
    done = run_here("data", path, "--data-option", f"texts={template}", "--out", tmp_path / "s.png")
    assert (done.code, len(done.errors)) == (2, 1)


def test_an_unreadable_text_is_still_a_bad_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("0", {"png": png(NAMES[0]), "txt": b"\xff"})])
    stage = Pairs(name="pool", path=str(tmp_path / "t.tar"), texts={"en": "a {txt}"})
    with pytest.raises(UserError, match="wrong_encoding"):
        stage.run(context(tmp_path / "store", "pool"))


def test_commands_take_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clip(tmp_path / "clip", 0)
    class_folders(tmp_path)
    option = ("--data-option", "texts=a photo of a {label}, {year}")
    shown = run_here("data", "set", *option, "--write", "pool.yaml")
    assert shown.code == 0, shown.err
    line = next(line for line in shown.out.splitlines() if line.startswith("in a recipe: "))
    assert yaml.safe_load(line.removeprefix("in a recipe: "))["texts"] == "a photo of a {label}, {year}"
    assert "'a photo of a {label}, {year}'" in (tmp_path / "pool.yaml").read_text()
    assert run_here("plan", "pool.yaml").code == 0
    assert run_here("embed", "clip", "set", *option, "--out", "index.parquet").code == 0
    assert sorted(read_embeddings(tmp_path / "index.parquet").texts) == sorted(EXPECTED)
    scored = run_here("eval", "clip", "--data", "set", "--tasks", "retrieval", *option)
    assert scored.code == 0, scored.err


def test_embed_reads_the_columns_that_the_doctor_recognises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_clip(tmp_path / "clip", 0)
    (tmp_path / "photos").mkdir()
    lines = ["photo,about"]
    for name in NAMES:
        (tmp_path / "photos" / f"{name}.png").write_bytes(png(name))
        lines.append(f"{name}.png,a photo of something {name}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    done = run_here("embed", "clip", "t.csv", "--out", "index.parquet")
    assert done.code == 0, done.err
    assert read_embeddings(tmp_path / "index.parquet").texts == [f"a photo of something {name}" for name in NAMES]
