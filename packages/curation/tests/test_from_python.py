"""`vfm.curate`: captions from memory or from a path, by the shipped recipe; wrong captions are one line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

import vfm

COLOURS = ("red", "blue", "green")
CAPTIONS = [f"a {COLOURS[n % 3]} boat near the old bridge" for n in range(60)] + ["a zebra", "the"] * 2
SET = {"entries.min_count": 2}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[vfm.Curation, Path]:
    store = tmp_path_factory.mktemp("store")
    return vfm.curate(CAPTIONS, t=5, set=SET, store=store, progress=False), store


def test_captions_are_matched_balanced_and_listed(curated: tuple[vfm.Curation, Path]) -> None:
    done, _ = curated
    rows = done.table().to_pylist()
    assert {row["text"] for row in rows} <= set(CAPTIONS)
    assert done.kept == [row["text"] for row in rows if row["kept"]]
    assert 0 < len(done.kept) < len(rows)
    assert {row["probability"] for row in rows if row["text"] == "a zebra"} == {1.0}
    assert done.kept.count("a zebra") == 2
    assert done.subset.num_samples == len(done.kept)
    assert "matched texts kept" in str(done)
    assert done._repr_html_().count("<th ") == 4
    frame = done.to_pandas()
    assert list(frame["text"][frame["kept"]]) == done.kept
    assert list(frame.columns) == done.table().column_names


def test_the_same_captions_again_are_cached_and_a_path_gives_the_same(
    curated: tuple[vfm.Curation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, store = curated
    again = vfm.curate(iter(CAPTIONS), t=5, set=SET, store=store, progress=False)
    assert again.run["matches"].path.resolve() == done.run["matches"].path.resolve()
    assert len(list((store / "captions").iterdir())) == 1
    (tmp_path / "captions.tsv.gz").write_bytes(gzip.compress("\n".join(["caption", *CAPTIONS]).encode()))
    from_file = vfm.curate(tmp_path / "captions.tsv.gz", t=5, set=SET, store=store, progress=False)
    texts = from_file.table()["text"].to_pylist()
    assert texts == done.table()["text"].to_pylist()


@pytest.mark.parametrize(
    ("captions", "settings", "line"),
    [
        (5, {}, "captions: expected a list of texts or a path, got a int"),
        ([], {}, "captions: expected at least one text, got none"),
        (["a dog", None], {}, "captions[1]: expected a text, got a NoneType"),
        ("no/where.csv", {}, "no/where.csv: no such file or folder"),
        (["a dog"], {"t": 5, "target_size": 3}, "give exactly one of"),
        (["a dog"], {"t": -1}, "curated.t: "),
        (["a dog"], {"set": {"entires.size": 3}}, "no stage is named 'entires'; did you mean 'entries'?"),
    ],
)
def test_a_wrong_call_is_one_line(captions: Any, settings: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(vfm.UserError) as caught:
        vfm.curate(captions, **settings, store=tmp_path, progress=False)
    assert line in str(caught.value)


def test_a_table_is_asked_for_its_column(tmp_path: Path) -> None:
    class Frame(dict):
        columns = ("caption",)

    with pytest.raises(vfm.UserError, match="expected one column of texts, got a table"):
        vfm.curate(Frame(caption=["a"]), store=tmp_path)
