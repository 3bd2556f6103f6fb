"""A training ends with a line where it would hang: in its export, in closing its process group, in its workers."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from train_toy import Deep, Regression, fork, run_group
from vfm.data.loading import loader
from vfm.data.loading.loader import read_batches
from vfm.interfaces import LeftToFirst
from vfm.plugin import Context, Event, Runtime, TrainingRuntime, UserError
from vfm.train import distributed, exporting
from vfm.train.parallel import dist as processes
from vfm.train.parallel.replicated import has_state_in_buffers


def context(folder: Path, events: list[Event]) -> Context:
    return Context("toy", folder / "part", folder / "work", {}, events.append)


def export(folder: Path) -> None:
    """Hang in the export of rank 0."""

    class Told(list[Event]):
        def append(self, event: Event) -> None:
            (folder / "told.txt").write_text(event.data["message"])

    try:
        with exporting(TrainingRuntime(hang_seconds=0.05), context(folder, Told())):
            time.sleep(600)
    except LeftToFirst:
        (folder / "left.txt").touch()


def fail(folder: Path) -> None:
    """Raise an error where the process group cannot be closed."""
    dist.destroy_process_group = lambda: time.sleep(600)  # type: ignore[assignment]  # as NCCL does while a collective is running
    processes.CLOSING = 0.5
    with distributed(Runtime(device="cpu")) as world:
        (folder / f"began-{world.rank}").touch()
        raise UserError("the cause")


def test_an_export_that_hangs_ends_with_a_line_and_its_stacks(tmp_path: Path) -> None:
    begun = time.monotonic()
    printed = run_group(__file__, "export", str(tmp_path), code=1)
    assert time.monotonic() - begun < 200
    line = f"toy: the export hangs: nothing has come after 0 s (stacks: {tmp_path}/work/stacks-0.txt)"
    assert line in printed
    assert (tmp_path / "told.txt").read_text() == line
    assert "in export" in (tmp_path / "work" / "stacks-0.txt").read_text()
    assert (tmp_path / "left.txt").exists()


def test_an_export_in_time_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    events: list[Event] = []
    with exporting(TrainingRuntime(hang_seconds=0.05), context(tmp_path, events)):
        pass
    time.sleep(1)  # the process would have ended by now
    assert not events


def test_an_error_is_reported_although_the_group_cannot_be_closed(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert "the cause" in run_group(__file__, "fail", str(tmp_path), code=1)
    assert time.monotonic() - begun < 200
    assert (tmp_path / "began-0").exists()


class Stuck:
    def __getitem__(self, index: int) -> int:
        if index:
            time.sleep(600)
        return index


def test_workers_that_are_stuck_end_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "STUCK", 2.0)
    batches = read_batches(Stuck(), [0, 1], 1, start="fork")  # type: ignore[arg-type,var-annotated]
    assert next(batches) == 0
    with pytest.raises(UserError, match=r"the workers have read no batch for 2 s: a file or its server does not"):
        next(batches)


def test_constants_are_not_sent_in_every_step() -> None:
    assert has_state_in_buffers(Regression(norm=True))
    positions = Deep()
    positions.register_buffer("positions", torch.ones(2), persistent=False)
    assert not has_state_in_buffers(positions)
    assert not has_state_in_buffers(nn.Linear(2, 2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"export": export, "fail": fail}[sys.argv[1]]
    fork(int(os.environ["WORLD_SIZE"]), lambda: work(Path(sys.argv[2])))
