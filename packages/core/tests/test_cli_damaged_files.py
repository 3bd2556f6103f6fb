"""Wrong and damaged files: one clear line and exit code 2, and nothing is removed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from cli_world import RECIPE, run_alone, run_here, toys
from vfm.storage.integrity import SEAL, seal

__all__ = ["toys"]


def refused(*words: str | Path) -> str:
    done = run_here(*words)
    assert done.code == 2, done
    (line,) = done.errors
    return line.removeprefix("error: ")


@pytest.mark.parametrize("text", ["\ufeff" + RECIPE, RECIPE.replace("\n", "\r\n")], ids=["BOM", "CRLF"])
def test_recipe_with_byte_order_mark_or_crlf_is_valid(text, toys):
    Path("r.yaml").write_bytes(text.encode())
    assert run_here("plan", "r.yaml").code == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (RECIPE.replace("  -", "\t-").encode(), "r.yaml:2: not valid YAML: found character '\\t'"),
        (RECIPE.encode("utf-16"), "r.yaml: not UTF-8 text (byte 0)"),
        (b"", "r.yaml:1: expected a recipe: a mapping with the key 'stages'"),
        (b"\x1b[2J", "r.yaml: not valid YAML: unacceptable character"),
    ],
    ids=["tabs", "UTF-16", "empty", "control characters"],
)
def test_file_that_is_not_a_recipe_is_one_line(data, said, toys):
    Path("r.yaml").write_bytes(data)
    assert refused("plan", "r.yaml").startswith(said)


ARTIFACT, RUN = Path("store/runs/r/artifacts/a"), Path("store/runs/r")


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "{", "\xff"])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        (ARTIFACT / "artifact.json", ("show", ARTIFACT)),
        (ARTIFACT / "manifest.json", ("report", "r")),
        (RUN / "run.json", ("report", "r")),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_damaged_file_of_the_store_is_named(file, words, text, toys):
    run_here("run", "r.yaml")
    file.write_text(text, encoding="latin-1")
    assert re.search(rf"{file.name}: (not|expected) ", refused(*words))


def test_show_of_a_damaged_manifest_is_one_line_and_shows_nothing(toys):
    run_here("run", "r.yaml")
    (ARTIFACT / "manifest.json").write_text("{")
    assert "manifest.json: not readable as JSON" in refused("show", ARTIFACT)
    assert run_here("show", ARTIFACT).out == ""


def test_show_writes_names_as_they_are(toys):
    run_here("run", "r.yaml")
    (ARTIFACT / "[bold]x.bin").touch()
    assert "  [bold]x.bin\n" in run_here("show", ARTIFACT).out


def test_run_mends_a_damaged_run_file(toys):
    run_here("run", "r.yaml")
    before = (RUN / "run.json").read_text()
    (RUN / "run.json").write_text(before[:20])
    assert run_here("run", "r.yaml").code == 0
    assert '"recipe": "r"' in (RUN / "run.json").read_text()


def test_foreign_lines_among_the_events_are_skipped(toys):
    run_here("run", "r.yaml")
    (RUN / "events.jsonl").write_text('{"type": "run_started"}\n{"type": "bad_sample"\n')
    assert run_here("report", "r").code == 0


def test_init_prints_a_command_that_can_be_copied(toys):
    done = run_here("init", "my [red]recipe.yaml", "--like", "diva_published")  # core's only recipe
    assert done.out.endswith("run it with: vfm run 'my [red]recipe.yaml'\n"), done.err


@pytest.mark.parametrize("store", ["nowhere", "r.yaml"])
def test_clean_of_a_missing_store_is_one_line(store, toys):
    assert (
        refused("clean", "--store", store)
        == f"{store}: no such folder; give the folder of artifacts and runs with --store"
    )


def test_clean_keeps_what_vfm_did_not_make(toys):
    run_here("run", "r.yaml")
    theirs = [Path("store/site"), Path("store/photos-0123abcd"), Path("store/.mine.part")]
    for folder in theirs:
        folder.mkdir()
        (folder / "manifest.json").write_text('{"name": "an app"}')
    Path("store/.toy.draw-0123abcd.part").touch()
    assert "nothing to remove" in run_here("clean").out
    assert all(folder.is_dir() for folder in theirs)


def test_clean_removes_nothing_where_the_links_cannot_be_read(toys):
    run_here("run", "r.yaml")
    made = sorted(Path("store").glob("toy.*"))
    shutil.rmtree("store/runs")
    Path("store/runs").symlink_to("runs")
    broken = "store/runs: expected a folder of links to the artifacts in use, got a file or a broken link"
    assert refused("clean") == broken
    assert sorted(Path("store").glob("toy.*")) == made


def test_doctor_names_a_library_that_cannot_be_loaded(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open\\nshared object file')\n")
    done = run_alone("doctor", cwd=tmp_path, path=site)
    assert done.code == 2
    assert r"✗ device       torch cannot be loaded: libcudart.so.12: cannot open\nshared object file" in done.out


@pytest.mark.parametrize("changed", [{"started": "x"}, {"seconds": []}, {"file": ["x"]}, {"started": 1e30}])
def test_values_of_a_run_record_that_make_no_sense_are_no_traceback(changed, toys):
    run_here("run", "r.yaml")
    record = json.loads((RUN / "run.json").read_text())
    record.pop(SEAL, None)
    (RUN / "run.json").write_bytes(seal({**record, **changed}))
    for words in (("report", "r"), ("runs",), ("clean",), ("run", "r.yaml")):
        done = run_here(*words)
        assert done.code in (0, 2)
        assert all("run.json: not readable as the record of a run" in line for line in done.errors)
