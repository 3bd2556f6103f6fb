"""Plan, store and run: identities, publishing by one rename, resuming, locks, and what a failure leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import toy_plugin
import vfm
from vfm.flow.execution.run import run_plan
from vfm.flow.execution.subprocesses import signals_forwarded
from vfm.flow.plan.estimate import known_artifacts
from vfm.flow.plan.plan import make_plan, saved_identity
from vfm.flow.plan.store import Slot, Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.manifest import read_manifest
from vfm.storage.fingerprints import cached_fingerprints
from vfm.storage.integrity import read_sealed

KNOWN = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
TEXT = """\
stages:
  - {kind: toy.draw, name: a, count: 40}
  - {kind: toy.draw, name: b, seed: 5}
  - {kind: toy.add, name: sum, inputs: [a, b], pause: 0.0}
"""


def plan(text: str, store: Path, *overrides: str):
    recipe = parse_recipe(text, KNOWN, overrides, name="r", where="r.yaml")
    return recipe, make_plan(recipe, Store(store))


def go(text: str, store: Path, *overrides: str, fresh: bool = False):
    events: list[vfm.Event] = []
    recipe, steps = plan(text, store, *overrides)
    outcome = run_plan(recipe, steps, Store(store), events.append, fresh=fresh)
    return outcome, events


def test_run_publishes_every_stage_with_manifest_and_links(tmp_path):
    outcome, events = go(TEXT, tmp_path)
    total = vfm.Artifact.load(outcome.directory / "artifacts" / "sum")
    assert total.values == [sum(range(40)) + 35 + 36 + 37]
    manifest = read_manifest(outcome.steps[2].slot.artifact)
    assert manifest["inputs"] == {"a": outcome.steps[0].identity, "b": outcome.steps[1].identity}
    assert manifest["numbers"] == {"train/total": total.values[0]}
    assert manifest["versions"]["vfm-core"]
    assert [event.type for event in events if event.type.startswith("stage")] == ["stage_started", "stage_finished"] * 3
    assert not list(tmp_path.glob(".*.part")) + list(tmp_path.glob(".*.work"))


def test_an_estimate_takes_a_stage_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "saved"):
        toy_plugin.Numbers.create(tmp_path / name, values=[1])
    recipe, _ = plan(TEXT.replace("[a, b]", "[a, b, saved]"), tmp_path / "store")
    assert known_artifacts(recipe, Store(tmp_path / "store")) == ({"saved": Path("saved")}, "")


def test_second_run_is_all_cached(tmp_path):
    go(TEXT, tmp_path)
    _, events = go(TEXT, tmp_path)
    assert [event.data["cached"] for event in events if event.type == "stage_finished"] == [True] * 3


def test_identity_follows_what_changes_a_result_and_nothing_else(tmp_path):
    def ids(text: str) -> list[str]:
        return [step.identity for step in plan(text, tmp_path)[1]]

    base = ids(TEXT)
    renamed = ids(TEXT.replace("name: a", "name: x").replace("[a, b]", "[x, b]"))
    assert renamed == base
    assert ids(TEXT.replace("count: 40", "count: 40, runtime: {workers: 3}")) == base
    changed = ids(TEXT.replace("count: 40", "count: 41"))
    assert changed[0] != base[0]
    assert changed[1] == base[1]
    assert changed[2] != base[2]


def test_changed_outside_file_means_a_new_identity(tmp_path):
    file = tmp_path / "words.txt"
    text = f"stages:\n  - {{kind: toy.read, name: w, path: {file}}}\n"
    file.write_text("one")
    first = plan(text, tmp_path)[1][0].identity
    file.write_text("two")
    assert plan(text, tmp_path)[1][0].identity != first


def test_missing_outside_file_is_one_line(tmp_path):
    with pytest.raises(vfm.UserError, match=r"nowhere\.txt: no such file or folder"):
        plan("stages:\n  - {kind: toy.read, name: w, path: nowhere.txt}\n", tmp_path)


def test_preflight_speaks_before_anything_runs(tmp_path):
    file = tmp_path / "empty.txt"
    file.write_text(" ")
    store = tmp_path / "store"
    text = TEXT + f"  - {{kind: toy.read, name: w, path: {file}}}\n"
    with pytest.raises(vfm.UserError, match=r"^w: .*the file is empty$"):
        go(text, store)
    assert not Store(store).artifacts()


def test_a_mistake_that_is_found_before_a_fresh_run_removes_nothing(tmp_path):
    file = tmp_path / "empty.txt"
    file.write_text(" ")
    store = tmp_path / "store"
    go(TEXT, store)
    with pytest.raises(vfm.UserError, match="the file is empty"):
        go(TEXT + f"  - {{kind: toy.read, name: w, path: {file}}}\n", store, fresh=True)
    assert len(Store(store).artifacts()) == 3


def test_bad_samples_and_warnings_reach_the_manifest(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("hello")
    outcome, _ = go(f"stages:\n  - {{kind: toy.read, name: w, path: {file}}}\n", tmp_path / "store")
    manifest = read_manifest(outcome.steps[0].slot.artifact)
    assert manifest["bad_samples"] == {"odd_word": 1}
    assert manifest["warnings"] == ["reading is slow"]


def test_failure_loses_no_finished_artifact(tmp_path):
    text = TEXT + "  - {kind: toy.fail, name: f, number: sum, how: bug}\n"
    with pytest.raises(RuntimeError, match="a bug"):
        go(text, tmp_path)
    assert len(Store(tmp_path).artifacts()) == 3


def test_fresh_makes_everything_again(tmp_path):
    first, _ = go(TEXT, tmp_path)
    second, events = go(TEXT, tmp_path, fresh=True)
    assert [event.data["cached"] for event in events if event.type == "stage_finished"] == [False] * 3
    assert second.steps[0].identity == first.steps[0].identity


CHILD = """
import sys; sys.path.insert(0, {here!r})
import toy_plugin
from vfm.flow.plan.plan import make_plan
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.store import Store
known = {{stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}}
recipe = parse_recipe({text!r}, known, name="r", where="r.yaml")
def show(event): print(event.to_json(), flush=True)
run_plan(recipe, make_plan(recipe, Store({store!r})), Store({store!r}), show)
"""


def child(store: Path, text: str) -> subprocess.Popen[str]:
    script = CHILD.format(here=str(Path(__file__).parent), text=text, store=str(store))
    # The store is addressed as a Path in the child.
    script = script.replace(f"Store({str(store)!r})", f"Store(__import__('pathlib').Path({str(store)!r}))")
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"the child ended without saying {words!r}")


def test_killed_run_goes_on_and_ends_with_the_same_result(tmp_path):
    slow = TEXT.replace("pause: 0.0", "pause: 0.05")
    straight, _ = go(slow.replace("0.05", "0.0"), tmp_path / "other")
    process = child(tmp_path / "store", slow)
    wait_for(process, '"done": 7')
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    outcome, events = go(slow, tmp_path / "store")
    started = [event for event in events if event.type == "stage_started"]
    assert [event.data["status"] for event in started] == ["resume"]
    first = next(event for event in events if event.type == "progress")
    assert first.data["done"] >= 7
    here, there = (o.directory / "artifacts/sum/artifact.json" for o in (outcome, straight))
    assert here.read_bytes() == there.read_bytes()
    assert any("taking over" in event.data.get("message", "") for event in events)


def test_second_run_waits_for_the_first_and_names_it(tmp_path):
    slow = TEXT.replace("pause: 0.0", "pause: 0.05")
    process = child(tmp_path, slow)
    wait_for(process, '"done": 3')
    _, events = go(slow, tmp_path)
    process.communicate()
    waits = [event.data["message"] for event in events if event.type == "log"]
    assert len(waits) == 1
    assert f"held by process {process.pid}" in waits[0]
    assert [event.data["cached"] for event in events if event.type == "stage_finished"][-1]


OUTLIVES = """
import sys
from pathlib import Path
from vfm.flow.plan.store import Slot
with Slot(Path(sys.argv[1]), "toy.draw-00000000").in_use():
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_run_waits_for_processes_that_outlive_the_run_before_it(tmp_path):
    slot = Slot(tmp_path, "toy.draw-00000000")
    slot.begin()
    words = [sys.executable, "-c", OUTLIVES, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for(process, "writing")
        assert slot.is_locked
        assert Store(tmp_path).unlinked() == []

        def end(message: str) -> None:
            assert message == "waiting for the processes of toy.draw-00000000: held by another process"
            process.stdin.close()

        with slot.lock(end):
            assert process.wait(60) == 0
    assert not slot.is_locked


def test_crash_between_writing_and_renaming_never_looks_finished(tmp_path):
    slot = Slot(tmp_path, "toy.draw-00000000")
    slot.begin()
    (slot.work / "step.json").write_text("{}")
    (slot.part / "artifact.json").write_text("{}")
    assert slot.status == "resume"
    assert Store(tmp_path).artifacts() == []
    slot.publish({"identity": "x"})
    assert slot.status == "cached"
    assert read_sealed(slot.artifact / "manifest.json")["identity"] == "x"


def test_places_of_artifacts_are_absolute_for_tasks_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store(Path("store")).slot("toy.draw", "0" * 64).work == tmp_path / "store/.toy.draw-00000000.work"


def test_clean_keeps_what_a_run_links_and_what_is_being_made(tmp_path):
    first, _ = go(TEXT, tmp_path)
    changed = TEXT.replace("count: 40", "count: 4")
    go(changed, tmp_path)
    store = Store(tmp_path)
    assert len(store.artifacts()) == 5
    assert store.unlinked() == []
    shutil.rmtree(first.directory)
    loose = {slot.name for slot in store.unlinked()}
    assert len(loose) == 2
    with next(iter(store.unlinked())).lock(lambda message: None):
        assert len(store.unlinked()) == 1


def test_a_saved_artifact_without_a_manifest_is_identified_by_its_contents(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    toy_plugin.Numbers.create(folder, values=[1])
    bulk = folder / "bulk.bin"

    def identity(content: bytes) -> str:
        bulk.write_bytes(content)
        with cached_fingerprints(tmp_path / "store") as fingerprint:
            return saved_identity(folder, fingerprint)

    assert identity(b"seed 0") != identity(b"seed 1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_training_processes_and_is_reported(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True) as child:
        with signals_forwarded() as processes, processes.of(child):
            os.kill(os.getpid(), number)
            assert child.wait(timeout=1800) == -signal.SIGTERM
        assert processes.stopped == [number]
        assert not processes.running
    assert signal.getsignal(number) == signal.SIG_DFL
