"""`vfm verify` names every damaged file of a store, and with --inputs every outside file that has changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli_world import Outcome, run_here, toys
from train_toy import Samples, plan, train
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.flow.records import input_changes
from vfm.flow.records.manifest import read_manifest
from vfm.interfaces import Event
from vfm.storage import fingerprints
from vfm.storage.chained_lines import START, broken_lines, chained, end_of_chain
from vfm.storage.fingerprints import BLOCK, NUM_BLOCKS
from vfm.storage.integrity import seal

__all__ = ["toys"]

READ = "stages:\n  - {kind: toy.read, name: w, path: words.txt}\n"


def artifact(name: str, run: str = "r") -> Path:
    return Path(f"store/runs/{run}/artifacts/{name}").resolve()


def flip(file: Path, place: int = -3) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def fifo(file: str) -> None:
    os.unlink(file)
    os.mkfifo(file)


def test_store_as_it_was_written_is_good(toys: Path) -> None:
    run_here("run", "r.yaml")
    done = run_here("verify")
    assert done.code == 0, done.err
    assert done.out.count("good") == 3
    assert "MB/s); 0 damaged" in done.out
    assert run_here("verify", artifact("a")).out.count("good") == 1


def test_every_kind_of_damage_is_named_and_the_exit_code_is_2(toys: Path) -> None:
    run_here("run", "r.yaml")
    shutil.copytree("store", "whole", symlinks=True)
    a = artifact("a").name
    damages = {
        f"{a}/artifact.json: not as it was written": lambda: flip(artifact("a") / "artifact.json"),
        f"{a}/artifact.json: missing; expected a file of": lambda: (artifact("a") / "artifact.json").unlink(),
        f"{a}/artifact.json: expected ": lambda: os.truncate(artifact("a") / "artifact.json", 3),
        f"{a}/manifest.json: not ": lambda: flip(artifact("a") / "manifest.json"),
        f"{a}/manifest.json: no such file": lambda: (artifact("a") / "manifest.json").unlink(),
        f"{a}/manifest.json: expected 'kind', 'identity', ": lambda: (artifact("a") / "manifest.json").write_text("{}"),
        "r@1/run.json: expected 'recipe', 'seconds'; ": lambda: Path("store/runs/r/run.json").write_text("{}"),
        "run.json: no such file": lambda: Path("store/runs/r/run.json").unlink(),
        f"artifacts/a: expected a link to {a}, which is missing": lambda: shutil.rmtree(artifact("a")),
        "artifacts/a: expected a link to an artifact, which": lambda: Path("store/runs/r/artifacts/a").unlink(),
        "run.json: expected a regular file, got a FIFO": lambda: fifo("store/runs/r/run.json"),
        "events.jsonl: expected a regular file": lambda: fifo("store/runs/r/events.jsonl"),
        "run.json: not ": lambda: flip(Path("store/runs/r/run.json")),
        "events.jsonl: line 1: not as it was written": lambda: flip(Path("store/runs/r/events.jsonl"), 20),
        "expected an identity that begins with 0123": lambda: shutil.copytree(artifact("a"), "store/toy.draw-01234567"),
    }
    for line, damage in damages.items():
        shutil.rmtree("store")
        shutil.copytree("whole", "store", symlinks=True)
        damage()
        done = run_here("verify")
        assert done.code == 2
        assert len(done.errors) == 1, done.err
        assert line in done.errors[0]
        assert "; 1 damaged" in done.out


def test_artifact_of_an_older_version_is_not_hashed(toys: Path) -> None:
    run_here("run", "r.yaml")
    manifest = read_manifest(artifact("a"))
    del manifest["files"]
    (artifact("a") / "manifest.json").write_text(json.dumps(manifest))
    done = run_here("verify")
    assert done.code == 0
    assert (done.out.count("good"), done.out.count("not hashed")) == (2, 1)


def test_checkpoints_of_an_unfinished_training_are_verified(tmp_path: Path) -> None:
    work = tmp_path / "store/.clip.train-01234567.work"
    train(work, plan(checkpoint={"every_steps": 6}), data=Samples())
    assert run_here("verify", tmp_path / "store").out.count("good") == 2
    flip(work / "work/step-00000006/state/optimizer.safetensors")
    done = run_here("verify", tmp_path / "store")
    assert done.code == 2
    assert "step-00000006/state/optimizer.safetensors: not as it was written" in done.err


def test_folder_that_is_missing_is_one_line(tmp_path: Path) -> None:
    assert run_here("verify", tmp_path / "nowhere").errors == [
        f"error: {tmp_path / 'nowhere'}: no such folder; expected a folder of artifacts and runs"
    ]


@pytest.mark.parametrize("words", [(), ("--inputs",)])
def test_folder_that_is_no_store_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "images").mkdir()
    done = run_here("verify", tmp_path, *words)
    assert (done.code, done.errors) == (
        2,
        [f"error: {tmp_path}: expected a folder of artifacts and runs, got one with neither"],
    )


def test_report_without_the_facts_of_an_artifact_is_one_line(toys: Path) -> None:
    run_here("run", "r.yaml")
    (artifact("a") / "artifact.json").unlink()
    done = run_here("report", "r")
    assert (done.code, len(done.errors)) == (2, 1), done.out
    assert done.errors[0].endswith("/a: no artifact found (artifact.json is missing)")


def verify_inputs(store: Path | str = "store") -> Outcome:
    return run_here("verify", store, "--inputs")


def test_changed_input_is_named_with_the_results_behind_it(toys: Path) -> None:
    Path("words.txt").write_text("one")
    Path("w.yaml").write_text(READ)
    run_here("run", "w.yaml")
    os.utime("words.txt")
    done = verify_inputs()
    assert (done.code, done.out.count("same")) == (0, 1)
    Path("words.txt").write_text("two")
    done = verify_inputs()
    assert done.code == 2
    assert done.errors == [f"error: {Path('words.txt').resolve()}: changed; behind {artifact('w', 'w').name}"]
    assert done.out.splitlines()[-1].startswith("1 input, 3 bytes in ")
    Path("words.txt").unlink()
    assert "words.txt: no such file or folder; behind toy.read-" in verify_inputs().err


def make_store(store: Path, path: Path, fingerprint: str) -> None:
    """Write the manifests of a stage that read an outside path, and of one that was made from it."""
    for name, identity, inputs in (
        ("toy.read-00000000", "0" * 32, {}),
        ("toy.add-11111111", "1" * 32, {"w": "0" * 32}),
    ):
        (store / name).mkdir(parents=True)
        sources = {} if inputs else {str(path): fingerprint}
        record = {"identity": identity, "inputs": inputs, "sources": sources, "files": {}}
        (store / name / "manifest.json").write_bytes(seal(record))


def test_changed_file_of_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED", -(10**12))
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_text(name)
    with fingerprints.cached_fingerprints(tmp_path / "store") as fingerprint:
        make_store(tmp_path / "store", tmp_path / "images", fingerprint(str(tmp_path / "images")))
    assert verify_inputs(tmp_path / "store").code == 0
    (tmp_path / "images/b.png").write_text("x")
    (tmp_path / "images/d.png").write_text("x")
    (line,) = verify_inputs(tmp_path / "store").errors
    assert line.endswith("images: changed: b.png, d.png; behind toy.read-00000000, toy.add-11111111")


def test_every_byte_of_a_large_file_is_compared_with_the_last_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fingerprints, input_changes):
        monkeypatch.setattr(module, "WHOLE_FILE", BLOCK * NUM_BLOCKS)
    file = tmp_path / "big.tar"
    file.write_bytes(bytes(3 * BLOCK * NUM_BLOCKS))
    with fingerprints.cached_fingerprints(tmp_path / "store") as fingerprint:
        make_store(tmp_path / "store", file, fingerprint(str(file)))
    assert "of 1 large files the SHA-256 is recorded only now" in verify_inputs(tmp_path / "store").out
    assert "recorded" not in verify_inputs(tmp_path / "store").out
    flip(file, 2 * BLOCK)  # between two blocks of the fingerprint
    done = verify_inputs(tmp_path / "store")
    assert done.code == 2
    assert f"{file}: changed in bytes that its fingerprint leaves out: {file}; behind toy.read-00000000" in done.err


def damaged_lines(lines: list[bytes]) -> list[int]:
    return broken_lines(lines)[0]


def test_any_flipped_bit_of_an_event_is_noticed() -> None:
    lines = [Event("log", "a", {"message": text}).to_json().encode() for text in ("ä", "one")]
    assert damaged_lines([line + b"\n" for line in lines]) == []  # of an older version
    first, end = chained(lines[0], START)
    whole = [first, chained(lines[1], end)[0]]
    late = chained(lines[1], (1, hashlib.sha256(lines[0] + b"\n").hexdigest()))[0]
    assert damaged_lines([lines[0] + b"\n", late]) == []
    assert damaged_lines([whole[0], whole[1], whole[1]]) == [3]
    assert Event.from_json(whole[1].decode()).data == {"message": "one"}
    for number, line in enumerate(whole):  # the first also where an older version may have written it
        for bit in range(8 * len(line)):
            damaged = bytearray(line)
            damaged[bit // 8] ^= 1 << bit % 8
            assert number + 1 in damaged_lines([*whole[:number], bytes(damaged), *whole[number + 1 :]])


def test_several_runs_that_append_at_once_continue_one_chain(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    listeners = [JsonLinesListener(file) for _ in range(3)]
    turns = random.Random(0).choices(range(3), k=300)

    def append(listener: int) -> None:
        for number in range(turns.count(listener)):
            listeners[listener].vfm_event(Event("log", str(listener), {"message": str(number)}))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(append, range(3)))
    for listener in listeners:
        listener.close()
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 300
    assert broken_lines(lines, end_of_chain(file)) == ([], True)
    assert end_of_chain(file)[0] == 300


def test_the_chain_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    for message in ("one", "x" * 100_000, "three", "four"):
        listener = JsonLinesListener(file)
        listener.vfm_event(Event("log", None, {"message": message}))
        listener.close()
        if message == "three":
            os.truncate(file, file.stat().st_size - 30)
    lines = file.read_bytes().splitlines(keepends=True)
    assert broken_lines(lines, end_of_chain(file)) == ([3], True)
    assert Event.from_json(lines[3].decode()).data == {"message": "four"}
