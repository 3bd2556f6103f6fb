"""Files of matches that are damaged, of an earlier version, or of a part of the pool."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import vfm.cli.commands  # noqa: F401  (registers the commands)
from filter_runs import run
from vfm.cli import app
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels
from vfm.plugin import Event
from vfm_curation.counts.matches import matches_file, read_matches
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.shard_files import finished_summary, read_arrow_file

WORDS = ["dog", "cat", "house", "red"]
SHARED = """stages:
- {kind: data.pairs, name: pool, path: "*.parquet", images: false, texts: {en: en, de: de}}
- {kind: curation.metadata, name: entries, path: entries.txt}
"""
MATCHING = "- {kind: curation.match, name: matches, pool: pool, metadata: entries}\n"
STAGES = {
    "balance": "- {kind: curation.balance, name: last, matches: MATCHES, t: 3}\n",
    "where": "- kind: curation.filter\n  name: last\n  pool: pool\n"
    "  filters: [{type: where, keep: score > 1, matches: MATCHES}]\n",
    "random": "- {kind: curation.random, name: last, matches: MATCHES, target_size: 9}\n",
}


def write_pool(folder: Path) -> list[dict[str, Any]]:
    """Write a table of 90 English and 30 German captions in two shards."""
    records = []
    for number in range(90):
        german = None if number % 3 else "red"
        records.append({"uid": f"{number:032x}", "en": f"a {WORDS[number % 3]}", "de": german, "score": number % 6})
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(records[part::2]), folder / f"{part}.parquet")
    (folder / "entries.txt").write_text("\n".join(WORDS))
    return records


def run_recipe(name: str) -> Result:
    return CliRunner().invoke(app, ["run", name, "--store", "store", "--quiet"])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Match a pool by the command, and return the folder of the matches in the store."""
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path)
    Path("recipe.yaml").write_text(SHARED + MATCHING)
    done = run_recipe("recipe.yaml")
    assert done.exit_code == 0, done.output
    return Path("store/runs/recipe/artifacts/matches").resolve()


def flip_an_id(file: Path) -> None:
    """Change one bit of the id of an entry, by which the file is still a valid Arrow file."""
    ids = read_matches(file).ids
    content = bytearray(file.read_bytes())
    place = content.index(ids.tobytes()) + ids.nbytes // 2 // 4 * 4
    content[place] ^= 1
    times = file.stat()
    file.chmod(0o644)
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (read_matches(file).ids != ids).sum() == 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", ["store", "path"])
def test_a_flipped_bit_in_matches_is_one_line_that_names_the_file(published: Path, stage: str, place: str) -> None:
    folder = published
    if place == "path":
        folder = Path("elsewhere").resolve()
        shutil.copytree(published, folder)
    file = matches_file(folder, 1)
    before = SHARED + STAGES[stage].replace("MATCHES", str(folder))
    if place == "store":
        before = SHARED + MATCHING + STAGES[stage].replace("MATCHES", "matches")
    Path("second.yaml").write_text(before)
    flip_an_id(file)
    done = run_recipe("second.yaml")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert re.search(r"shards/00000001\.arrow: .*; remove \S+ to make it again", line)


@pytest.mark.parametrize("stage", STAGES)
def test_matches_of_an_earlier_version_are_refused_in_one_line(published: Path, stage: str) -> None:
    old = Path("old").resolve()
    shutil.copytree(published, old)
    for file in (old / "shards").iterdir():
        pq.write_table(read_arrow_file(file), file.with_suffix(".parquet"))
        file.unlink()
    (old / "manifest.json").unlink()
    Path("second.yaml").write_text(SHARED + STAGES[stage].replace("MATCHES", str(old)))
    done = run_recipe("second.yaml")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert f"{old}/shards: expected Arrow files of matches, got Parquet files of an earlier version; run " in line


@pytest.mark.parametrize("damage", ["id", "zeros", "cut"])
def test_a_file_that_was_damaged_before_a_resume_is_made_again(tmp_path: Path, run_stage: Any, damage: str) -> None:
    write_pool(tmp_path)
    pool = run_stage(Pairs(name="pool", path=str(tmp_path / "*.parquet"), images=False, texts={"en": "en", "de": "de"}))
    entries = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=pool, m=entries)
    whole = {file.name: file.read_bytes() for file in (matches.path / "shards").iterdir()}
    file = tmp_path / "work" / "matches" / "shards" / "00000001.arrow"  # as a kill before the end leaves it
    summary = finished_summary(file)
    if damage == "id":
        flip_an_id(file)
    else:
        content = whole[file.name]
        middle = slice(len(content) // 2 // 64 * 64, len(content) // 2 // 64 * 64 + 64)
        file.write_bytes(content.replace(content[middle], bytes(64)) if damage == "zeros" else content[: middle.start])
    assert damage == "cut" or finished_summary(file) == summary
    again = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=pool, m=entries)
    assert {file.name: file.read_bytes() for file in (again.path / "shards").iterdir()} == whole


@pytest.mark.parametrize("languages", [None, ["en", "de"]], ids=["default", "all"])
@pytest.mark.parametrize("of", ["pool", "subset"])
def test_texts_that_the_matches_leave_out_are_counted_in_one_line(
    tmp_path: Path, run_stage: Any, of: str, languages: list[str] | None
) -> None:
    records = write_pool(tmp_path)
    pool = run_stage(Pairs(name="pool", path=str(tmp_path / "*.parquet"), images=False, texts={"en": "en", "de": "de"}))
    entries = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    filters = [{"type": "where", "keep": "score < 4"}]
    part = run(run_stage, pool, filters, "part") if of == "subset" else pool
    matching = MatchTexts(name="matches", pool="p", metadata="m", languages=languages)
    matches = run_stage(matching, p=part, m=entries)
    events: list[Event] = []
    condition = [{"type": "where", "keep": "score != 1", "matches": "x"}]

    def warned(dataset: Any, name: str) -> list[str]:
        events.clear()
        subset = run(run_stage, dataset, condition, name, inputs={"x": matches}, send=events.append)
        (panel,) = (panel for panel in load_panels(subset.path) if panel.title == "Conditions of where")
        lines = [event.data["message"] for event in events if event.type == "warning"]
        assert bool(lines) == ("were not matched" in panel.note)
        return lines

    texts = [(row["score"], key) for row in records for key in ("en", "de") if row[key]]
    left_out = [
        (score, key) for score, key in texts if (of == "subset" and score >= 4) or (key == "de" and not languages)
    ]
    lines = warned(pool, "whole")
    assert len(lines) == bool(left_out)
    if left_out:
        assert f"matches of all {len(texts)} texts of 'p', but {len(left_out)} were not matched" in lines[0]
        assert f"(only the texts of {part.path} in {', '.join(languages or ['en'])})" in lines[0]
    if languages:
        assert warned(part, "same") == []
