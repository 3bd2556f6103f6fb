"""The files of a step's inputs are read once for their hashes by a group of processes, not once in each."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from train_toy import damage, fork, run_group
from vfm.base import UserError
from vfm.flow.execution.execution import run_step
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import Slot
from vfm.interfaces import MANIFEST_FILE, Artifact, Context, Ref, Runtime, Stage
from vfm.storage.folder_checks import share_of
from vfm.storage.integrity import FILES, hash_folder, seal

SIZE = 6 << 20


class Bulk(Artifact):
    """Files of bytes."""


class Reader(Stage):
    """Loads its inputs, as trainings do."""

    kind: Literal["test.reader"] = "test.reader"
    in_processes: ClassVar[bool] = True
    inputs: list[Ref[Bulk]]

    def run(self, ctx: Context) -> Bulk:
        for ref in self.inputs:
            ctx.load(ref)
        return Bulk.create(ctx.directory)


def make_bulk(folder: Path, number: int) -> Path:
    bulk = Bulk.create(folder)
    for index in range(number):
        (folder / f"{index}.bin").write_bytes(os.urandom(SIZE))
    (folder / MANIFEST_FILE).write_bytes(seal({"roots": {}, FILES: hash_folder(folder, without=[MANIFEST_FILE])}))
    return bulk.path


def bytes_read() -> int:
    """Count the bytes that this process has read by system calls."""
    (line,) = re.findall(r"^rchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(line)


def load(root: Path) -> None:
    rank = os.environ["RANK"]
    folders = {name: root / name for name in ("a", "b")}
    stage = Reader(name="r", inputs=["a", "b"], runtime=Runtime(processes=2))
    step = Step(stage, "0" * 64, dict.fromkeys(folders, "0" * 64), folders, {}, Slot(root, "test.reader-00000000"))
    step.slot.work.mkdir(exist_ok=True)
    before, error = bytes_read(), ""
    try:
        run_step(step, lambda event: None)
    except UserError as raised:
        error = str(raised)
    (root / f"read-{rank}.json").write_text(json.dumps([bytes_read() - before, error]))


def results(root: Path) -> list[tuple[int, str]]:
    run_group(__file__, str(root))
    return [tuple(json.loads((root / f"read-{rank}.json").read_text())) for rank in range(2)]


def test_two_processes_read_the_bytes_of_their_inputs_once(tmp_path: Path) -> None:
    make_bulk(tmp_path / "a", 3)
    make_bulk(tmp_path / "b", 1)
    counts, errors = zip(*results(tmp_path), strict=True)
    assert errors == ("", "")
    assert all(2 * SIZE <= count < 3 * SIZE for count in counts)  # with what they import


def test_a_damaged_file_that_one_of_them_reads_is_the_error_of_both(tmp_path: Path) -> None:
    damage(make_bulk(tmp_path / "a", 3) / "1.bin")
    make_bulk(tmp_path / "b", 1)
    lines = {error for _, error in results(tmp_path)}
    assert len(lines) == 1
    assert re.search(r"/a/1\.bin: not as it was written: its SHA-256 has changed; remove \S+/a to make it", lines.pop())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_even_and_have_each_file_once(size: int) -> None:
    known = {f"{number}.bin": (100 + 7 * number, "") for number in range(20)}
    shares = [share_of(known, rank, size) for rank in range(size)]
    assert sorted(name for share in shares for name in share) == sorted(known)
    loads = [sum(count for count, _ in share.values()) for share in shares]
    assert max(loads) - min(loads) <= 240


if __name__ == "__main__":
    fork(int(os.environ["WORLD_SIZE"]), lambda: load(Path(sys.argv[1])))
