"""`vfm verify --root` proves a result from outside bytes to the page, and refuses what a forger makes consistent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_world import run_here, toys
from test_store_changes import RUN, artifact, link_to, other_weights, replace
from vfm.flow.records.manifest import read_manifest
from vfm.flow.records.runs import hash_of_record
from vfm.storage.integrity import seal, sealed_page

__all__ = ["toys"]
RECIPE = """\
stages:
  - {kind: toy.draw, name: a, count: 3}
  - {kind: toy.draw, name: b, seed: 5, mode: squared}
  - {kind: toy.read, name: w, path: words.txt}
  - {kind: toy.add, name: sum, inputs: [a, b]}
"""


@pytest.fixture
def published(toys: Path) -> str:
    """A run whose hash was published."""
    Path("words.txt").write_text("some words")
    Path("r.yaml").write_text(RECIPE)
    assert run_here("run", "r.yaml").code == 0
    return hash_of_record(RUN)


def reseal_page() -> None:
    page = (RUN / "report.html").read_bytes().replace(b"toy.add", b"toy.sub")
    (RUN / "report.html").write_bytes(sealed_page(page.rpartition(b"\n<!-- sha256")[0]))


def reseal_record() -> None:
    record = json.loads((RUN / "run.json").read_text())
    del record["sha256"]
    (RUN / "run.json").write_bytes(seal({**record, "roots": {}, "manifests": {}, "events": [0, ""]}))


def reseal_manifest() -> None:
    manifest = read_manifest(artifact("b"))
    (artifact("b") / "manifest.json").write_bytes(seal({**manifest, "seed": 6}))


# What a forger does who rewrites every hash inside the store, and the words of the refusal.
FORGERIES: dict[str, tuple[Callable[[], object], str]] = {
    "weights": (other_weights, "made again since this run, and not the same"),
    "manifest": (reseal_manifest, "b/manifest.json: written again since this run"),
    "record": (reseal_record, "no run or artifact has the hash"),
    "page": (reseal_page, "report.html: differs from the page drawn now"),
    "outside bytes": (lambda: Path("words.txt").write_text("some wordz"), "words.txt: changed"),
    "link": (lambda: link_to(Path("../../..") / artifact("b").name), "a: expected a link to "),
    "recipe": (lambda: replace(RUN / "recipe.yaml", "count: 3", "count: 4"), "recipe.yaml: changed"),
}


def test_a_run_is_proven_by_its_hash_and_an_artifact_by_its_root(published: str) -> None:
    assert published in (RUN / "report.html").read_text()
    assert f"r@1  {published}" in run_here("verify").out
    done = run_here("verify", "--root", published)
    assert (done.code, done.err) == (0, "")
    assert f"r@1: {published}\n4 artifacts, 4 files" in done.out
    assert "1 input," in done.out
    assert done.out.splitlines()[-1] == "proven"
    assert run_here("run", "r.yaml").out.count("cached") == 4  # more events follow, and nothing else
    assert run_here("verify", "--root", published).code == 0
    done = run_here("verify", "--root", read_manifest(artifact("sum"))["root"])
    assert done.out.splitlines()[-1] == "proven"
    assert "3 artifacts, 3 files" in done.out  # with both inputs


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_that_is_consistent_in_itself_is_refused(published: str, name: str) -> None:
    forge, words = FORGERIES[name]
    forge()
    done = run_here("verify", "--root", published)
    assert done.code == 2
    assert words in done.err
    assert "\nproven" not in done.out


def test_a_root_that_is_no_hash_is_one_line(toys: Path) -> None:
    run_here("run", "r.yaml")
    assert run_here("verify", "--root", "abc").errors == ["error: --root: expected 64 hexadecimal digits, got 'abc'"]
