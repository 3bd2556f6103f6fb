"""Steps at a time: in which order, beside which others, with which threads and GPUs, and what a failure leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import toy_plugin
from train_toy import Plan, Probe, plan
from vfm.base import UserError
from vfm.flow.execution.durations import longest_paths
from vfm.flow.execution.parallel import run_in_parallel
from vfm.flow.execution.run import run_plan
from vfm.flow.execution.subprocesses import Job
from vfm.flow.plan.plan import Step, make_plan
from vfm.flow.plan.store import Slot, Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.interfaces import Event, Runtime, Stage


class Encode(Stage):
    """Stands for a stage that computes on a device in one process."""

    kind: Literal["toy.encode"] = "toy.encode"
    on_device: ClassVar[bool] = True

    def run(self, ctx: Any) -> toy_plugin.Numbers:
        raise AssertionError("only scheduled")


class Prepare(Encode):
    """Stands for a stage that computes on no device."""

    kind: Literal["toy.prepare"] = "toy.prepare"  # type: ignore[assignment]
    on_device: ClassVar[bool] = False


def step(stage: Stage, *inputs: str, slot: str = "") -> Step:
    """A step of a store that does not exist."""
    name = slot or stage.name
    return Step(stage, name, dict.fromkeys(inputs, ""), {}, {}, Slot(Path("no-store"), f"{name}-00000000"))


def training(name: str, *inputs: str, steps: int = 12, **changes: Any) -> Step:
    return step(plan(name=name, steps=steps, **changes), *inputs)


def evaluation(name: str, model: str, data: str) -> Step:
    return step(Probe(name=name, models=[model]), model, data)


@dataclass
class Record:
    """Which steps ran beside which, as which jobs, and what was sent."""

    errors: dict[str, Exception] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    beside: set[frozenset[str]] = field(default_factory=set)
    most: int = 0
    ended: list[str] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    threads: dict[str, int | None] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)  # with the GPUs of each
    shared: list[str] = field(default_factory=list)  # GPUs that two steps had at once
    events: list[Event] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def run_one(self, step: Step, send: Callable[[Event], None], job: Job) -> bool:
        name, gpus = step.stage.name, job.environment.get("CUDA_VISIBLE_DEVICES", "")
        with self.lock:
            assert set(step.inputs) <= set(self.ended), f"{name} began before its inputs"
            self.begun.append(name)
            self.beside |= {frozenset((name, other)) for other in self.running}
            taken = {gpu for listed in self.running.values() for gpu in listed.split(",") if gpu}
            self.shared += taken & set(gpus.split(","))
            self.running[name] = gpus
            self.most = max(self.most, len(self.running))
            self.environments[name], self.threads[name] = dict(job.environment), step.stage.runtime.threads
        time.sleep(0.05)
        with self.lock:
            del self.running[name]
            self.ended.append(name)
        if name in self.errors:
            raise self.errors[name]
        return name != "photos"  # which was there

    def run(self, steps: list[Step], jobs: int) -> bool:
        return run_in_parallel(steps, self.run_one, self.events.append, jobs)


def diamond() -> list[Step]:
    photos, clip, eva = step(Prepare(name="photos")), training("clip", "photos"), training("eva", "photos")
    return [photos, clip, eva, step(Prepare(name="summary"), "clip", "eva")]


def test_trainings_on_one_dataset_run_at_once_and_every_step_after_its_inputs() -> None:
    record = Record()
    assert record.run(diamond(), 3)
    assert frozenset(("clip", "eva")) in record.beside
    assert record.begun[0] == "photos"
    assert record.begun[-1] == "summary"


def test_no_more_steps_run_at_once_than_jobs() -> None:
    record = Record()
    assert not record.run([step(Prepare(name="photos"))], 2)
    record.run([step(Prepare(name=f"s{number}")) for number in range(6)], 2)
    assert record.most == 2


def test_evaluations_of_the_same_model_on_the_same_data_wait_for_its_stored_features() -> None:
    steps = [step(Prepare(name="photos")), step(Prepare(name="pairs")), training("a"), training("b")]
    steps += [evaluation("a_photos", "a", "photos"), evaluation("a_again", "a", "photos")]
    steps += [evaluation("b_photos", "b", "photos"), evaluation("a_pairs", "a", "pairs")]
    record = Record()
    record.run(steps, 4)
    assert frozenset(("a_photos", "a_again")) not in record.beside
    assert frozenset(("a_photos", "b_photos")) in record.beside or frozenset(("a_again", "b_photos")) in record.beside


def test_a_step_that_makes_what_an_earlier_one_makes_comes_after_it() -> None:
    record = Record()
    same = [step(Prepare(name="first"), slot="same"), step(Prepare(name="second"), slot="same")]
    record.run([*same, training("long", "second", steps=10_000)], 2)
    assert record.begun == ["first", "second", "long"]
    assert not record.beside


def test_steps_on_the_longest_path_begin_first() -> None:
    steps = [training("short", steps=10), training("middle", steps=1000), training("long", steps=2000)]
    steps += [step(Prepare(name="small")), training("longest", "small", steps=3000)]
    record = Record()
    record.run(steps, 1)
    assert record.begun == ["small", "longest", "long", "middle", "short"]


def test_known_seconds_count_more_than_a_guess(tmp_path: Path) -> None:
    known = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
    add = "{kind: toy.add, name: s, inputs: [b], pause: 0.1}"
    text = f"stages: [{{kind: toy.draw, name: a}}, {{kind: toy.draw, name: b, count: %d}}, {add}]"

    def planned(count: int) -> list[Step]:
        return make_plan(parse_recipe(text % count, known, name="r", where="r.yaml"), Store(tmp_path))

    guessed = longest_paths(planned(4))
    assert guessed["b"] == 2 * guessed["a"]
    recipe = parse_recipe(text % 4, known, name="r", where="r.yaml")
    run_plan(recipe, planned(4), Store(tmp_path), lambda event: None)
    assert longest_paths(planned(4)) == {"a": 0, "b": 0, "s": 0}  # all is cached
    measured = longest_paths(planned(5))
    assert 0.4 <= measured["s"] < guessed["s"]
    assert measured["a"] == 0


def test_after_a_failure_what_does_not_need_it_still_runs() -> None:
    record = Record(errors={"clip": UserError("clip: does not fit")})
    steps = [*diamond(), evaluation("scores", "clip", "photos"), evaluation("others", "eva", "photos")]
    with pytest.raises(UserError, match=r"^clip: does not fit$"):
        record.run(steps, 2)
    assert set(record.ended) == {"photos", "clip", "eva", "others"}
    failed, left = record.events
    assert (failed.type, failed.stage, failed.data["message"]) == ("stage_failed", "clip", "clip: does not fit")
    assert left.data["message"] == "not run, since they need what failed: scores, summary"


def test_of_several_failures_mistakes_are_lines_and_a_bug_comes_first() -> None:
    mistakes: dict[str, Exception] = {"clip": UserError("clip: does not fit"), "eva": UserError("eva: neither")}
    with pytest.raises(UserError) as failed:
        Record(errors=mistakes).run(diamond(), 2)
    assert sorted(str(failed.value).splitlines()) == ["clip: does not fit", "eva: neither"]
    with pytest.raises(RuntimeError, match="a bug"):
        Record(errors={**mistakes, "eva": RuntimeError("a bug")}).run(diamond(), 2)


def test_two_gpus_are_shared_out_and_no_two_steps_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    on_gpu = [training(f"t{number}", runtime={"device": "auto"}) for number in range(3)]
    both = training("both", runtime={"device": "cuda", "processes": 2})
    too_many = training("too_many", runtime={"device": "cuda", "processes": 8})
    encoded = step(Encode(name="encoded", runtime=Runtime(processes=2)))  # `processes` do not run it
    prepared, on_cpu = step(Prepare(name="prepared")), training("on_cpu", runtime={"device": "cpu"})
    record = Record()
    record.run([*on_gpu, both, too_many, encoded, prepared, on_cpu], 4)
    visible = {name: given.get("CUDA_VISIBLE_DEVICES") for name, given in record.environments.items()}
    assert {visible[name] for name in ("t0", "t1", "t2", "encoded")} == {"4", "6"}
    assert (visible["both"], visible["too_many"]) == ("4,6", "4,6")
    assert (visible["prepared"], visible["on_cpu"]) == (None, None)
    assert record.shared == []


def test_a_step_that_names_a_gpu_has_it_alone_and_counts_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    named = [training(f"t{number}", runtime={"device": "cuda:1"}) for number in range(2)]
    record = Record()
    record.run([*named, training("other", runtime={"device": "auto"})], 3)
    assert "CUDA_VISIBLE_DEVICES" not in record.environments["t0"]
    assert frozenset(("t0", "t1")) not in record.beside


def test_without_gpus_nothing_is_said_about_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("vfm.flow.execution.devices.GPUS", tmp_path / "none")
    record = Record()
    record.run([training("t", runtime={"device": "auto"})], 2)
    assert "CUDA_VISIBLE_DEVICES" not in record.environments["t"]


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("vfm.interfaces.stage.os.sched_getaffinity", lambda process: set(range(16)), raising=False)


@pytest.mark.usefixtures("sixteen_cores")
def test_the_cores_are_shared_by_the_jobs_and_the_processes_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record()
    several = training("several", runtime={"processes": 4})
    record.run([*diamond()[:1], several, training("three", runtime={"threads": 3})], 2)
    assert record.threads == {"photos": 8, "several": 2, "three": 3}  # as manifests record it
    assert {name: int(given["OMP_NUM_THREADS"]) for name, given in record.environments.items()} == record.threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert Runtime().among(2).threads == 5
    assert Runtime(threads=3).among(2).threads == 3


@pytest.mark.usefixtures("sixteen_cores")
def test_workers_are_shared_where_their_number_follows_from_the_cores() -> None:
    assert Runtime(workers="auto").num_workers == 15
    assert Runtime(workers="auto").among(2).num_workers == 7
    assert Runtime(workers=3).among(2).num_workers == 3
    assert Runtime().among(2).num_workers == 0
    assert Runtime().among(100).threads == 1
    assert Plan(name="p", steps=1, runtime={"parallel": "fsdp"}).runtime.among(2).parallel == "fsdp"


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2", True, None])
def test_a_number_of_jobs_that_is_none_is_refused(jobs: Any, tmp_path: Path) -> None:
    known = {stage.kind_name(): stage for stage in toy_plugin.vfm_stages()}
    recipe = parse_recipe("stages: [{kind: toy.draw, name: a}]", known, name="r", where="r.yaml")
    with pytest.raises(UserError, match=r"^jobs: expected an integer from 1 on or ray, got "):
        run_plan(recipe, make_plan(recipe, Store(tmp_path)), Store(tmp_path), lambda event: None, jobs=jobs)
