"""No damage to a published artifact goes unnoticed, and identity follows the content of outside files."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

import toy_plugin
import vfm
from vfm.flow.execution.execution import write_step
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.plan import Step, make_plan
from vfm.flow.plan.store import Slot, Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.manifest import read_manifest
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.integrity import FILES, hash_folder, read_sealed, seal
from vfm.storage.publishing import publish_file, publish_folder, write_file

KNOWN = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
TEXT = """\
stages:
  - {kind: toy.draw, name: a, count: 40}
  - {kind: toy.add, name: sum, inputs: [a]}
"""
READ = "stages:\n  - {{kind: toy.read, name: w, path: {}}}\n"


def plan(text: str, store: Path) -> list[Step]:
    return make_plan(parse_recipe(text, KNOWN, (), name="r", where="r.yaml"), Store(store))


def run(text: str, store: Path) -> list[Step]:
    recipe = parse_recipe(text, KNOWN, (), name="r", where="r.yaml")
    steps = make_plan(recipe, Store(store))
    run_plan(recipe, steps, Store(store), lambda event: None)
    return steps


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that write to the disk or rename, in order, with the names of the files."""
    made: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        made.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        function = getattr(os, name)

        def renaming(source, target, function=function):
            made.append(f"rename {Path(source).name} {Path(target).name}")
            function(source, target)

        monkeypatch.setattr(os, name, renaming)
    return made


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_files_then_folders_are_on_the_disk_before_the_rename_and_the_parent_after_it(tmp_path, calls):
    part = tmp_path / "part"
    (part / "state").mkdir(parents=True)
    (part / "meta.json").write_text("{}")
    (part / "state" / "bulk.bin").write_bytes(b"1")
    publish_folder(part, tmp_path / "made")
    synced = ["fsync bulk.bin", "fsync state", "fsync meta.json", "fsync part"]
    assert calls == [*synced, "rename part made", f"fsync {tmp_path.name}"]
    calls.clear()
    (tmp_path / "x.part").write_text("x")
    publish_file(tmp_path / "x.part", tmp_path / "x")
    assert calls == ["fsync x.part", "rename x.part x", f"fsync {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_artifact_is_published_in_this_order(tmp_path, calls):
    slot = Slot(tmp_path, "toy.draw-00000000")
    slot.begin()
    (slot.part / "artifact.json").write_text("{}")
    slot.publish({"identity": "x"})
    *before, parent = calls[-5:]
    assert sorted(before[:2]) == ["fsync artifact.json", "fsync manifest.json"]
    assert before[2:] == [f"fsync {slot.part.name}", f"rename {slot.part.name} {slot.name}"]
    assert parent == f"fsync {tmp_path.name}"


def test_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    write_file(file, b"one")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(file, b"two")
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("last", [{FILES: {"a": [3, "0" * 64]}}, {}])
def test_any_flipped_bit_of_a_sealed_record_is_noticed(tmp_path, last):
    file = tmp_path / "manifest.json"
    record = {"identity": "0123", "numbers": {"loss": 0.1}, "text": "ä\udcff", **last}
    written = seal(record)
    file.write_bytes(written)
    assert read_sealed(file, "identity") == record
    assert b"\\udcff" in written
    for bit in range(8 * len(written) - 800, 8 * len(written)):
        file.write_bytes(written)
        flip(file, bit)
        with pytest.raises(vfm.UserError, match=r"manifest\.json: (not|expected) "):
            read_sealed(file, "identity")


def test_manifest_has_size_and_hash_of_every_file(tmp_path):
    folder = run(TEXT, tmp_path)[0].slot.artifact
    known = read_manifest(folder)[FILES]
    assert set(known) == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        MANIFEST_FILE
    }
    assert {name: tuple(facts) for name, facts in known.items()} == hash_folder(folder, without=[MANIFEST_FILE])


def test_caches_are_left_out(tmp_path):
    for name in ("offsets/0.parquet", "offsets", "kept/offsets", "index.json"):
        if not (tmp_path / name).exists():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    assert list(hash_folder(tmp_path, without=["offsets"])) == ["index.json", "kept/offsets"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 5)], ids=["deleted", "cut"])
def test_plan_refuses_an_artifact_whose_files_are_missing_or_have_another_size(tmp_path, damage):
    folder = run(TEXT, tmp_path)[0].slot.artifact
    damage(folder / "artifact.json")
    with pytest.raises(vfm.UserError, match=rf"artifact\.json: .* bytes.*; remove .*{folder.name} to make it again"):
        plan(TEXT, tmp_path)
    shutil.rmtree(folder)
    assert [step.status for step in plan(TEXT, tmp_path)] == ["new", "cached"]


def test_loading_refuses_any_flipped_bit(tmp_path):
    folder = run(TEXT, tmp_path)[0].slot.artifact
    assert vfm.Artifact.load(folder).values[:2] == [0, 1]
    for name in ("artifact.json", MANIFEST_FILE):
        whole = (folder / name).read_bytes()
        for bit in random.Random(name).sample(range(8 * len(whole)), 10):
            flip(folder / name, bit)
            with pytest.raises(vfm.UserError, match=rf"{name}: (not|expected) "):
                vfm.Artifact.load(folder)
            (folder / name).write_bytes(whole)
    vfm.Artifact.load(folder)


def test_hidden_characters_of_a_sealed_record_are_escapes(tmp_path):
    record = {"description": "photo\u202egpj.exe \x9b2J \x1b äß"}
    (tmp_path / "run.json").write_bytes(seal(record))
    text = (tmp_path / "run.json").read_text()
    assert not set(text) & set("\u202e\x9b\x1b")
    assert r"photo\u202egpj.exe \u009b2J \u001b äß" in text
    assert read_sealed(tmp_path / "run.json") == record


def test_cure_of_a_damaged_artifact_that_a_link_leads_to_cures_it(tmp_path):
    step, _ = run(TEXT, tmp_path)
    link = tmp_path / "runs/r/artifacts/a"
    file = link / "artifact.json"
    file.write_text(file.read_text().replace("39", "38"))
    with pytest.raises(vfm.UserError, match=r"a/artifact\.json: not as it was written") as refused:
        vfm.Artifact.load(link)
    folder = str(refused.value).partition("; remove ")[2].removesuffix(" to make it again")
    assert folder == str(step.slot.artifact)
    shutil.rmtree(folder)
    run(TEXT, tmp_path)
    assert vfm.Artifact.load(link).values[-1] == 39


def test_stage_refuses_a_damaged_input(tmp_path):
    first, second = run(TEXT, tmp_path)
    shutil.rmtree(second.slot.artifact)
    file = first.slot.artifact / "artifact.json"
    file.write_text(file.read_text().replace("39", "38"))
    with pytest.raises(vfm.UserError, match=r"artifact\.json: not as it was written: its SHA-256 has changed; remove"):
        run(TEXT, tmp_path)
    assert second.status == "resume"


def test_artifact_of_an_older_version_has_no_hashes_and_is_read(tmp_path):
    folder = run(TEXT, tmp_path)[0].slot.artifact
    manifest = read_manifest(folder)
    del manifest[FILES]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
    assert vfm.Artifact.load(folder).values[:2] == [0, 1]
    assert [step.status for step in plan(TEXT, tmp_path)] == ["cached"] * 2


def test_empty_manifest_is_damage_and_no_older_version(tmp_path):
    folder = run(TEXT, tmp_path)[0].slot.artifact
    (folder / MANIFEST_FILE).write_text("{}")
    with pytest.raises(vfm.UserError, match=r"manifest\.json: not as it was written: it is an empty object"):
        vfm.Artifact.load(folder)


def test_equal_first_digits_of_two_identities_are_an_error_and_never_another_stages_result(tmp_path):
    step = run(TEXT, tmp_path)[0]
    manifest = {**read_manifest(step.slot.artifact), "identity": step.identity[:8] + "f" * 24}
    (step.slot.artifact / MANIFEST_FILE).write_bytes(seal(manifest))
    with pytest.raises(vfm.UserError, match=rf"expected the identity {step.identity} of a, got {step.identity[:8]}fff"):
        plan(TEXT, tmp_path)


def test_partial_results_of_another_identity_are_never_resumed(tmp_path):
    step = plan(TEXT, tmp_path)[0]
    work = write_step(step)
    write_step(step)  # its own
    record = {**read_sealed(work / "step.json"), "identity": step.identity[:8] + "f" * 24}
    (work / "step.json").write_bytes(seal(record))
    with pytest.raises(vfm.UserError, match="begins with the same eight digits"):
        run(TEXT, tmp_path)


def test_path_as_it_is_written_and_time_change_no_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "base.tar"
    file.write_text("one")
    (tmp_path / "link.tar").symlink_to(file)

    def identity(path: object) -> str:
        return plan(READ.format(path), tmp_path / "store")[0].identity

    first = identity("base.tar")
    assert [identity(path) for path in ("./base.tar", file, "../" + tmp_path.name + "/base.tar")] == [first] * 3
    os.utime(file, ns=(1, 1))
    assert identity("base.tar") == first
    assert identity("link.tar") != first  # a file's name may decide how it is read
    file.write_text("two")
    assert identity("base.tar") != first


def test_touch_makes_nothing_again(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("one")
    run(READ.format(file), tmp_path / "store")
    os.utime(file)
    assert [step.status for step in plan(READ.format(file), tmp_path / "store")] == ["cached"]


def test_settings_that_are_no_paths_stay_in_the_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("one")
    Path("1").write_text("one")
    draw = "  - {{kind: toy.draw, name: d, mode: {}}}\n"
    plain, squared = (
        plan(READ.format("words.txt") + draw.format(mode), tmp_path / "store") for mode in ("plain", "squared")
    )
    assert plain[0].identity == squared[0].identity
    assert plain[1].identity != squared[1].identity


def test_comparing_many_bytes_is_announced_once(tmp_path, monkeypatch):
    monkeypatch.setattr("vfm.storage.folder_checks.MUCH", 1)
    step = run(TEXT, tmp_path)[0]
    logged: list[str] = []
    ctx = vfm.Context(
        "x", tmp_path, tmp_path, {"a": step.slot.artifact}, lambda event: logged.append(event.data["message"])
    )
    ref = plan(TEXT, tmp_path)[1].stage.inputs[0]
    os.utime(step.slot.artifact / "artifact.json")  # its state has changed since the run compared it
    assert [ctx.load(ref).values[:2] for _ in range(2)] == [[0, 1]] * 2
    assert logged == ["comparing the hashes of a: 0.0 GB to read"]
