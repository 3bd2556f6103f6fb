"""Steps at a time: none before its inputs, none beside another that reads its data, none after a mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vfm.base import UserError
from vfm.flow.execution.parallel import run_in_parallel
from vfm.interfaces import Runtime


@dataclass
class Named:
    name: str
    data: str | list[str] | None = None
    runtime: Runtime = field(default_factory=Runtime)


@dataclass
class Step:
    """What the scheduler looks at of a step."""

    stage: Named
    inputs: list[str] = field(default_factory=list)


@dataclass
class Record:
    """Which steps ran beside which, and with what environment."""

    fail: str = ""
    begun: list[str] = field(default_factory=list)
    beside: set[frozenset[str]] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    lock: Any = field(default_factory=threading.Lock)

    def run_one(self, step: Any, send: Any, environment: Mapping[str, str]) -> bool:
        name = step.stage.name
        with self.lock:
            assert set(step.inputs) <= set(self.ended), f"{name} began before its inputs"
            self.begun.append(name)
            self.beside |= {frozenset((name, other)) for other in self.running}
            self.running.add(name)
            self.environments[name] = dict(environment)
        time.sleep(0.05)
        with self.lock:
            self.running.discard(name)
            self.ended.append(name)
        if name == self.fail:
            raise UserError(f"{name} does not fit")
        return name != "photos"  # which was there


def steps() -> list[Any]:
    return [
        Step(Named("photos")),
        Step(Named("pairs")),
        Step(Named("zero_shot", "photos"), ["photos"]),
        Step(Named("knn", "photos"), ["photos"]),
        Step(Named("retrieval", "pairs"), ["pairs"]),
        Step(Named("summary"), ["zero_shot", "knn", "retrieval"]),
    ]


def test_steps_wait_for_their_inputs_and_for_who_reads_their_data() -> None:
    record = Record()
    assert run_in_parallel(steps(), record.run_one, lambda event: None, 3)
    assert sorted(record.begun) == sorted(step.stage.name for step in steps())
    assert frozenset(("photos", "pairs")) in record.beside
    assert frozenset(("zero_shot", "knn")) not in record.beside


def test_a_step_that_reads_several_datasets_waits_for_the_readers_of_each() -> None:
    record = Record()
    union = Step(Named("union", ["photos", "pairs"]), ["photos", "pairs"])
    run_in_parallel([*steps()[:2], union, *steps()[2:]], record.run_one, lambda event: None, 3)
    assert not record.beside & {frozenset(("union", name)) for name in ("zero_shot", "knn", "retrieval")}


def test_after_a_mistake_nothing_more_is_begun() -> None:
    record = Record(fail="zero_shot")
    with pytest.raises(UserError, match="zero_shot does not fit"):
        run_in_parallel(steps(), record.run_one, lambda event: None, 2)
    assert "summary" not in record.begun
    assert set(record.begun) == set(record.ended)  # what ran was let finish


def test_jobs_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    record = Record()
    run_in_parallel(steps()[:2], record.run_one, lambda event: None, 2)
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in record.environments.values()) == ["4", "6"]
    several = Step(Named("several", runtime=Runtime(processes=2)))
    run_in_parallel([several], record.run_one, lambda event: None, 2)
    assert "CUDA_VISIBLE_DEVICES" not in record.environments["several"]  # each of its processes takes one
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("vfm.flow.execution.parallel.GPUS", tmp_path / "none")
    run_in_parallel(steps()[:1], record.run_one, lambda event: None, 2)
    assert "CUDA_VISIBLE_DEVICES" not in record.environments["photos"]


def test_the_cores_are_shared_by_the_jobs_and_the_processes_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("vfm.flow.execution.parallel.os.cpu_count", lambda: 16)
    record = Record()
    several = Step(Named("several", runtime=Runtime(processes=4)))
    run_in_parallel([*steps()[:1], several], record.run_one, lambda event: None, 2)
    shares = {name: environment["OMP_NUM_THREADS"] for name, environment in record.environments.items()}
    assert shares == {"photos": "8", "several": "2"}
