"""Ten changes that somebody may make to a store: `vfm verify` notices each, and names what was changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_world import run_here, toys
from vfm.flow.plan.roots import root_of
from vfm.flow.plan.store import LINKS
from vfm.flow.records.manifest import read_manifest
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.integrity import hash_folder, seal

__all__ = ["toys"]
RUN = Path("store/runs/r@1")
EVENTS = RUN / "events.jsonl"


def artifact(stage: str) -> Path:
    return Path("store") / (RUN / LINKS / stage).readlink().name


def rewrite_events(change: Callable[[list[bytes]], list[bytes]]) -> None:
    EVENTS.write_bytes(b"".join(change(EVENTS.read_bytes().splitlines(keepends=True))))


def replace(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def link_to(target: Path) -> None:
    link = RUN / LINKS / "a"
    link.unlink()
    link.symlink_to(target)


def plant() -> None:
    (artifact("a") / "weights.bin").write_bytes(b"planted")


def other_weights() -> None:
    """Replace the values of `a`, and write a manifest that fits them."""
    folder = artifact("a")
    manifest = read_manifest(folder)
    replace(folder / "artifact.json", "1", "7")
    manifest["files"] = hash_folder(folder, without=[MANIFEST_FILE])
    (folder / MANIFEST_FILE).write_bytes(seal({**manifest, "root": root_of(manifest, folder / MANIFEST_FILE)}))


# The change, and the files or words that the lines name.
CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "events removed": (lambda: rewrite_events(lambda lines: lines[:2] + lines[4:]), "events.jsonl: line 3: "),
    "events reordered": (
        lambda: rewrite_events(lambda lines: [lines[1], lines[0], *lines[2:]]),
        "events.jsonl: line 1",
    ),
    "events cut": (lambda: rewrite_events(lambda lines: lines[:4]), "events.jsonl: events are missing"),
    "events emptied": (lambda: EVENTS.write_bytes(b""), "events.jsonl: events are missing"),
    "recipe edited": (lambda: replace(RUN / "recipe.yaml", "count: 3", "count: 4"), "recipe.yaml: changed"),
    "report edited": (lambda: replace(RUN / "report.html", "toy.add", "toy.sub"), "report.html: changed"),
    "file planted": (plant, "weights.bin: not in the manifest"),
    "link to another artifact": (
        lambda: link_to(Path("../../..") / artifact("b").name),
        f"{LINKS}/a: expected a link to ",
    ),
    "link to /etc": (lambda: link_to(Path("/etc")), f"{LINKS}/a: expected a link to "),
    "weights under a new manifest": (other_weights, "run the recipe again"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_store_is_noticed(toys: Path, name: str) -> None:
    assert run_here("run", "r.yaml").code == 0
    good = run_here("verify")
    assert good.code == 0, good.err
    change, line = CHANGES[name]
    change()
    done = run_here("verify")
    outcome = "noticed" if done.code == 2 else "passed"
    print(f"\n| {name:<28} | {outcome} | {(done.errors or [''])[-1]} |")
    assert done.code == 2
    assert line in done.err


def test_a_result_of_other_weights_is_computed_again_and_an_equal_artifact_changes_nothing(toys: Path) -> None:
    run_here("run", "r.yaml")
    shutil.rmtree(artifact("a"))
    again = run_here("run", "r.yaml").out
    assert again.count("cached") == 2  # `a` has the same bits as before, so the sum is still of it
    assert run_here("verify").code == 0
    other_weights()
    planned = run_here("plan", "r.yaml").out
    assert "a: made again since, and not the same" in planned
    before = json.loads((artifact("sum") / "artifact.json").read_text())["values"]
    assert run_here("run", "r.yaml").out.count("cached") == 2
    assert json.loads((artifact("sum") / "artifact.json").read_text())["values"] != before
    assert run_here("verify").err == ""
    assert run_here("run", "r.yaml").out.count("cached") == 3
    assert not [name for name in os.listdir("store") if name.endswith((".work", ".part"))]


def test_partial_results_of_other_weights_are_not_resumed(toys: Path) -> None:
    run_here("run", "r.yaml")
    shutil.rmtree(artifact("sum"))
    prepared = run_here("run", "r.yaml", "--prepare", "sum")
    work = next(Path("store").glob(".toy.add-*.work"))
    assert prepared.code == 0, prepared
    (work / "partial.txt").write_text("6 1000000")
    other_weights()
    run_here("run", "r.yaml")
    assert json.loads((artifact("sum") / "artifact.json").read_text())["values"][0] < 1_000_000


def test_a_manifest_of_an_older_version_is_not_proven_and_not_damaged(toys: Path) -> None:
    run_here("run", "r.yaml")
    for stage in ("a", "b", "sum"):
        manifest = read_manifest(artifact(stage))
        for key in ("root", "roots", "caches"):
            del manifest[key]
        (artifact(stage) / MANIFEST_FILE).write_bytes(seal(manifest))
    record = json.loads((RUN / "run.json").read_text())
    for key in ("roots", "manifests", "events", "sha256"):
        del record[key]
    (RUN / "run.json").write_bytes(seal(record))
    rewrite_events(lambda lines: [line.partition(b', "chain"')[0] + b"}\n" for line in lines])
    done = run_here("verify")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("not proven") == 3
    assert run_here("run", "r.yaml").out.count("cached") == 3
    assert run_here("verify").code == 0
