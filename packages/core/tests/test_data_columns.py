"""Columns of samples: read from every format, required of each sample, and reported group by group."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_world import run_here
from data_samples import context
from eval_world import NAMES, png, tiny_clip
from vfm.base import UserError
from vfm.data import BadSample, Sample, open_dataset, write_tar
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Images, Pairs
from vfm.data.samples.columns import weight_of
from vfm.interfaces import Artifact, Preflight, Report
from vfm.statistics import wilson_interval

SITES = ["north", "south", "south"]
ROWS: list[dict[str, Any]] = [
    {"label": NAMES[n % 7], "caption": f"a {NAMES[n % 7]} thing {n}", "weight": n / 2, "site": SITES[n % 3]}
    for n in range(21)
]


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="expected distinct names, got 'weight' 2 times"):
        Pairs(kind="data.pairs", name="p", path="x.tar", columns=["json.a.weight", "json.b.weight"])


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "images").mkdir(parents=True)
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", *ROWS[0]])
        writer.writeheader()
        for number, row in enumerate(rows):
            (folder / "images" / f"{number}.png").write_bytes(png(row["label"], number + 1))
            writer.writerow({"image": f"images/{number}.png", **row})
    return folder / "t.csv"


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    images = [png(row["label"], number + 1) for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(rows).append_column("image", pa.array(images)), folder / "t.parquet")
    return folder / "t.parquet"


def write_json_tar(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    samples = []
    for number, row in enumerate(rows):
        members = {"png": png(row["label"], number + 1), "txt": row["caption"].encode()}
        samples.append((f"{number:03d}", {**members, "json": json.dumps(row).encode()}))
    write_tar(folder / "t.tar", samples)
    return folder / "t.tar"


WRITERS = [write_table, write_parquet, write_json_tar]
Write = Callable[[Path, list[dict[str, Any]]], Path]


def pairs(tmp_path: Path, path: Path, columns: list[str]):
    stage = Pairs(name="pool", path=str(path), columns=columns, max_bad_fraction=1.0)
    stage.preflight(Preflight({}, {}))
    ctx = context(tmp_path / "store", "pool")
    return open_dataset(stage.run(ctx)), ctx


@pytest.mark.parametrize("write", WRITERS)
def test_columns_are_read_with_the_samples(tmp_path: Path, write: Write) -> None:
    source, _ = pairs(tmp_path, write(tmp_path / "data", ROWS), ["weight", "site"])
    assert len(source) == len(ROWS)
    for number, row in enumerate(ROWS):
        sample = source[number]
        assert weight_of(sample, "weight") == row["weight"]
        assert sample.columns["site"] == row["site"]
        assert source.facts(number).columns == sample.columns
    assert source.texts_of_shard(0)["text"].to_pylist() == [row["caption"] for row in ROWS]


@pytest.mark.parametrize("write", WRITERS)
def test_a_sample_without_a_value_is_bad_in_every_way_of_reading(tmp_path: Path, write: Write) -> None:
    rows = [dict(row) for row in ROWS]
    rows[4]["site"] = None
    source, ctx = pairs(tmp_path, write(tmp_path / "data", rows), ["site"])
    good, reasons = [], set()
    for number in range(len(source)):
        try:
            good.append(source[number].texts["en"][0])
        except BadSample as bad:
            reasons.add(bad.reason)
    assert reasons <= {"missing_value"}
    expected = [row["caption"] for row in rows if row["site"]]
    assert good == source.texts_of_shard(0)["text"].to_pylist() == expected
    assert ctx.bad in ({"missing_value": 1}, {})  # Parquet with a known count is not read for its index


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_table, r"no column 'sight' \(columns\); the columns are image, label, caption, weight, site"),
        (write_parquet, "no column 'sight'; the columns are label, caption, weight, site, image"),
        (write_json_tar, "expected values of sight; the first json has label, caption, weight, site"),
    ],
)
def test_a_wrong_column_is_one_line_with_the_columns(tmp_path: Path, write: Write, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        pairs(tmp_path, write(tmp_path / "data", ROWS), ["sight"])


def test_folders_have_no_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "data", ROWS)
    with pytest.raises(UserError, match="columns: expected a table, tars or Parquet, got a folder"):
        Images(name="x", path=str(path.parent / "images"), columns=["site"]).run(context(tmp_path / "store", "x"))


def test_captions_alone_keep_values_for_filters_and_may_lack_them(tmp_path: Path) -> None:
    text = "caption,site,score,safe\na,x,0.5,true\nb,,,False\nc,y,?,\n"
    (tmp_path / "captions.csv").write_text(text)
    source = pairs(tmp_path, tmp_path / "captions.csv", ["site", "score", "safe"])[0]
    assert source.texts_of_shard(0)["text"].to_pylist() == ["a", "b", "c"]
    values = source.index.open(0).values(np.arange(3), ["score", "site", "safe"])
    assert values.to_pydict() == {"score": [0.5, None, None], "site": ["x", None, "y"], "safe": [True, False, None]}
    with pytest.raises(UserError, match=r"no column 'sight' \(columns\); the columns are caption, site, score, safe"):
        pairs(tmp_path, tmp_path / "captions.csv", ["sight"])


@pytest.mark.parametrize("value", ["", "x", "-1", "nan", "inf", -0.5])
def test_a_weight_is_a_number_of_at_least_zero(value: str | float) -> None:
    with pytest.raises(BadSample, match="missing_value"):
        weight_of(Sample("a", "a", b"", columns={"w": value}), "w")
    assert weight_of(Sample("a", "a", b"", columns={"w": "0.5"}), "w") == 0.5


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_clip(tmp_path / "one", 0)
    tiny_clip(tmp_path / "two", 1)
    return tmp_path


@pytest.mark.parametrize("task", ["zero_shot", "retrieval", "knn"])
def test_reports_have_each_metric_of_each_group_with_its_interval(here: Path, task: str) -> None:
    write_table(here / "data", ROWS)
    words = ["eval", "one", "two", "--data", "data/t.csv", "--tasks", task, "--by", "site"]
    if task != "retrieval":
        words += ["--data-option", "label_key=label"]
    if task == "knn":
        write_table(here / "train", ROWS)
        words += ["--train", "train/t.csv"]
    done = run_here(*words)
    assert done.code == 0, done.err
    folder = next(path for path in (here / "store/runs/eval/artifacts").iterdir() if task in path.name)
    report = Artifact.load(folder)
    assert isinstance(report, Report)
    metrics = {(metric.model, metric.name): metric for metric in report.metrics}
    table = {"zero_shot": "images", "knn": "images", "retrieval": "text_retrieval"}[task]
    metric = {"zero_shot": "acc1", "knn": "knn_acc1", "retrieval": "text_retrieval_recall@5"}[task]
    limit = 5 if task == "retrieval" else 1
    site_of = {f"images/{number}.png": row["site"] for number, row in enumerate(ROWS)}
    rows = pq.read_table(folder / "predictions" / f"{table}.parquet").to_pylist()
    for model in ("one", "two"):
        for site in ("north", "south"):
            hits = [row["rank"] < limit for row in rows if row["model"] == model and site_of[row["key"]] == site]
            shown = metrics[model, f"{metric}/site={site}"]
            assert (shown.value, shown.n) == (pytest.approx(sum(hits) / len(hits)), len(hits))
            assert (shown.low, shown.high) == pytest.approx(wilson_interval(sum(hits), len(hits)))
    first = next(line for line in done.out.splitlines() if line.strip().startswith("north"))
    assert first.split()[1] == "7"  # images of north
    assert {c.metric for c in report.comparisons} == {name for _, name in metrics}


def test_an_absent_column_of_groups_is_an_error_before_the_models_run(here: Path) -> None:
    path = write_table(here / "data", ROWS)
    dataset = Labeled(name="data", path=str(path), columns=["weight"]).run(context(here / "store", "data"))
    done = run_here("eval", "one", "--data", dataset.path, "--tasks", "zero_shot", "--by", "site")
    assert done.code == 2
    assert done.errors[-1].endswith("no column 'site'; `columns` of the data's stage names weight")
