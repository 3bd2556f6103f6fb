"""Damaged files of every kind, read by the real command: 300 cases of `make fuzz`, whose page is docs/faults.md."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.cases import Fuzz, forked
from fuzz.mutations import Damage, damage
from fuzz.oracle import lost_silently, records
from fuzz.page import page
from fuzz.targets import Target

NUM_CASES = 300
ROOT = Path(__file__).parent


@pytest.mark.slow
def test_no_damage_is_a_traceback_a_hang_or_a_silent_loss(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzz", "--cases", str(NUM_CASES), "--resume", str(tmp_path / "outcomes.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert len(outcomes) == NUM_CASES
    assert {one["outcome"] for one in outcomes} == {"good", "counted", "refused"}


def test_page_keeps_the_sections_of_other_commands() -> None:
    outcomes = [{"target": "csv", "damage": "flip", "outcome": "good", "seconds": 1.0}]
    others = "\n## Flipped bits\n\nA table.\n\n## A store\n\nAnother one.\n"
    before = page(outcomes, 0) + others
    assert page([*outcomes, *outcomes], 0, before) == page([*outcomes, *outcomes], 0) + others
    assert page(outcomes, 0, page([*outcomes, *outcomes], 0, before)) == before


def spin() -> int:
    while True:
        pass


def grow() -> int:
    held = []
    while True:
        held.append(bytearray(b"x" * (16 << 20)))


def test_a_process_that_hangs_or_grows_is_ended(tmp_path: Path) -> None:
    assert forked(spin, tmp_path, seconds=0.5).killed == "hang"
    assert forked(grow, tmp_path, memory=1 << 30).killed == "memory"
    assert forked(lambda: os.kill(os.getpid(), 9) or 0, tmp_path).code == -9  # type: ignore[func-returns-value]


READ = {"items": ["a"], "bad": 0}


def toy(script: str, *, read: bool = False) -> Target:
    """Return a target whose command is a recipe's plan that does what a script says."""
    return Target(
        "toy", lambda: Path("x.csv").write_text("a\n" * 20), ("x.csv",), ((script,),), (lambda: READ) if read else None
    )


@pytest.mark.parametrize(
    ("damaged", "outcome"),
    [
        ("raise ValueError('x')", "traceback"),
        ("os.write(2, b'error: x.csv: bad'); sys.exit(2)", "refused"),
        ("os.write(2, b'error: bad value'); sys.exit(2)", "nameless"),
        ("sys.exit(3)", "traceback"),
        ("pass", "good"),
    ],
)
def test_outcomes_are_recognised(damaged: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(script: str) -> None:
        if Path("x.csv").read_bytes() != b"a\n" * 20:
            exec(script, {"sys": sys, "os": os})

    monkeypatch.setattr("fuzz.cases.vfm", command)
    assert Fuzz(tmp_path, [toy(damaged)], seed=0).run(0)[3].kind == outcome


def test_lost_and_changed_samples_are_found() -> None:
    table = b"".join(b"%03d.png,caption\n" % n for n in range(9))
    items = [str(n) for n in range(9)]
    before, flipped = {"items": items, "bad": 0}, Damage("flip", b"", 40, 41)

    def said(items: list[str], bad: int, done: Damage = flipped) -> str | None:
        return lost_silently(before, {"items": items, "bad": bad}, done, table, "x.csv")

    assert len(records("x.csv", table) or ()) == 9
    assert said(items, 0) is said(items[1:], 1) is said(["other", *items[1:]], 0) is None
    assert said(items[1:], 0) == "1 of 9 samples are lost, 0 are counted"
    assert said(["x", "y", "z", *items[3:]], 0) == "3 samples differ where 1 records are damaged"
    assert said([*items[:4], "part"], 0, Damage("truncate", b"", 70, len(table))) is None
    assert said(items[:4], 0, Damage("range", b"", 70, 71)) == "5 of 9 samples are lost, 0 are counted"


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ({"images": 8, "annotations": 9}, None),  # an image was taken out of the list, its annotation was counted
        ({"images": 8, "annotations": 8}, "9 annotations are listed, 8 are read or counted"),
        ({"images": 9, "annotations": 9}, "8 images are listed, 9 are read or counted"),
    ],
)
def test_annotations_of_an_image_that_is_no_longer_listed_must_be_counted(
    records: dict[str, int], wrong: str | None
) -> None:
    items = [str(n) for n in range(9)]
    before = {"items": items, "bad": 0, "listed": {"images": 9, "annotations": 9}}
    after = {"items": items[1:], "bad": 0, "records": records, "listed": {"images": 8, "annotations": 9}}
    assert lost_silently(before, after, Damage("value", b"", 40, 41), b"{}", "boxes.json") == wrong


def test_damage_depends_on_the_seed_alone_and_changes_something() -> None:
    data = b'{"a": [1, 2, {"b": "text"}], "c": 12345}\n' * 5
    for seed in range(200):
        done = damage(data, random.Random(seed))
        assert done == damage(data, random.Random(seed))
        assert done.data != data
        kept = done.data[: done.start]
        assert data.startswith(kept)
