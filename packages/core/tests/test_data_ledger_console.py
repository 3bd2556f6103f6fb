"""The samples and annotations that the console reports as dropped are those of the ledger."""

from __future__ import annotations

import random
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_world import run_here
from data_samples import context
from generated_layouts import Drawn, folder, parquet
from ledger_totals import read_totals
from test_data_annotated_ledger import write_damaged
from test_data_ledger import NOT_USED, STAGES
from vfm.base import UserError
from vfm.data.annotated.stages import Annotated
from vfm.data.ledger.account import USED
from vfm.data.ledger.ledger import ANNOTATED_LEDGER

SKIPPED = re.compile(r"^skipped: ([\d,]+) (\w+)", re.MULTILINE)
LEFT_OUT = re.compile(r"annotations left out: ([\d,]+) \(([^)]+)\); the first is")


def said(path: Path, kind: str) -> tuple[Counter[str], Counter[str]]:
    """Run `vfm data`, and read the dropped samples and annotations from its output, by reason."""
    done = run_here("data", path, "--kind", kind, "--out", path.parent / "samples.png")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    samples = {reason: int(count.replace(",", "")) for count, reason in SKIPPED.findall(done.out)}
    annotations: Counter[str] = Counter()
    for total, reasons in LEFT_OUT.findall(text):
        annotations.update({reason: int(count) for count, reason in map(str.split, reasons.split(", "))})
        assert annotations.total() == int(total.replace(",", ""))
    return Counter(samples), annotations


def dropped(totals: Counter[str]) -> Counter[str]:
    """Select the uses of a ledger that are reasons for dropping."""
    return Counter({use: count for use, count in totals.items() if use not in {USED, *NOT_USED, "class_left_out"}})


def indexed(path: Path, seed: int, kind: str) -> Drawn:
    """Draw layouts until one is for a stage and has a sample that can be used, and index it in the folder `out`."""
    for number in range(100):
        rng, root = random.Random(1000 * seed + number), path / f"{number}"
        root.mkdir()
        layout = folder(root, rng) if kind == "data.labeled" else parquet(root, rng)
        is_row = kind == "data.labeled" or pq.read_schema(str(layout.fields["path"])).field("image").type == pa.binary()
        if layout.kind == kind and is_row:  # rows with a path are one sample if they have the same path
            layout.fields["verify"] = "decode"
            with suppress(UserError):
                STAGES[kind](kind=kind, name="d", max_bad_fraction=1.0, **layout.fields).run(context(path / "out"))
                return layout
    raise AssertionError("no layout of this kind was drawn")


@pytest.mark.parametrize(("kind", "unit"), [("data.pairs", "rows"), ("data.labeled", "entries")])
@pytest.mark.parametrize("seed", range(8))
def test_skipped_samples_are_those_of_the_ledger(
    tmp_path: Path, seed: int, kind: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    layout = indexed(tmp_path, seed, kind)
    samples, _ = said(Path(str(layout.fields["path"])), kind)
    assert samples == dropped(read_totals(tmp_path / "out")[unit])


@pytest.mark.parametrize("seed", range(8))
def test_dropped_images_and_annotations_are_those_of_the_ledger(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    root = tmp_path / "set"
    write_damaged(root, random.Random(seed))
    Annotated(kind="data.annotated", name="d", path=str(root), max_bad_fraction=1.0).run(context(tmp_path / "out"))
    images, annotations = said(root, "data.annotated")
    totals = read_totals(tmp_path / "out", ANNOTATED_LEDGER)
    assert images + annotations == dropped(totals["images"]) + dropped(totals["annotations"])
    assert annotations == dropped(totals["annotations"])
