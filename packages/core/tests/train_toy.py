"""A small training for the tests of the loop; run as a script, it is a process to kill or one of several ranks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vfm.data import Batch, map_tensors
from vfm.plugin import (
    Artifact,
    Context,
    Evaluation,
    Event,
    Ref,
    Report,
    Training,
    TrainingRuntime,
    UserError,
)
from vfm.train import Frozen, Task, distributed, fit
from vfm.train.checkpoint import checkpoint
from vfm.train.loop import loop
from vfm.train.parallel import heartbeat
from vfm.train.parallel.sharing import of_all, own_share


class Plan(Training):
    kind: Literal["toy.train"] = "toy.train"
    name: str = "toy"
    can_shard: ClassVar[bool] = True

    def run(self, ctx: Context) -> Artifact:
        raise AssertionError("the tests call `fit` directly")


class Probe(Evaluation):
    """Report the outputs of a toy network; several processes compute some each."""

    kind: Literal["eval.probe"] = "eval.probe"
    in_processes: ClassVar[bool] = True
    models: list[Ref[Artifact]] = []  # type: ignore[assignment]
    at: float = 1.0

    def run(self, ctx: Context) -> Report:
        raise AssertionError("only evaluated in training here")

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        (ctx.directory / "scratch.txt").write_text("discarded")
        ctx.skip("truncated", "shard.tar:7")
        ctx.warn(f"at {self.at}")
        assert not encoder.training
        with torch.no_grad():
            points = own_share([self.at, 0.25, -2.0])
            answers = list(of_all(float(encoder(torch.full((1, 4), point))) for point in points))
        return {"answer": answers[0], "answer/half": answers[0] / 2, "answer/others": answers[1] - answers[2]}


class MainProbe(Probe):
    """The same in the first process only."""

    kind: Literal["eval.main_probe"] = "eval.main_probe"  # type: ignore[assignment]
    in_processes: ClassVar[bool] = False


GROUPS = {
    "optimizer": ("algorithm", "weight_decay", "betas", "eps", "momentum", "grad_clip_norm"),
    "schedule": ("warmup_steps", "min_lr"),
    "loading": ("max_bad_fraction",),
    "evaluation": ("tasks", "every_steps", "keep_best"),
}


def grouped(flat: dict[str, Any]) -> dict[str, Any]:
    """Return settings in their groups, so that tests can pass them flat."""
    groups = {name: {key: flat.pop(key) for key in keys if key in flat} for name, keys in GROUPS.items()}
    for name in ("optimizer", "schedule"):
        if name in flat:
            groups[name]["type"] = flat.pop(name)
    return {**flat, **{name: group for name, group in groups.items() if group}}


def plan(**changes: Any) -> Plan:
    settings = {
        "runtime": {"device": "cpu"},
        "steps": 12,
        "global_batch_size": 8,
        "lr": 0.05,
        "log_every": 4,
        "warmup_steps": 2,
    }
    return Plan(**grouped({**settings, **changes}))


@dataclass(frozen=True)
class Pairs:
    x: Tensor
    y: Tensor


class Regression(Task[Pairs]):
    """Learn the sum of the inputs, optionally with dropout and batch norm; `power` is given at log steps only."""

    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(16)] if norm else []
        self.net = nn.Sequential(nn.Linear(4, 16), *middle, nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.clamped = 0

    def forward(self, inputs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        guess = self.net(inputs.x)
        return F.mse_loss(guess, inputs.y), self.metrics(guess)

    def metrics(self, guess: Tensor) -> dict[str, Tensor]:
        return {"guess": guess.mean(), **({"power": guess.square().mean()} if self.is_log_step else {})}

    def after_step(self) -> None:
        self.clamped += 1

    def encoder(self) -> Any:
        return self.net


class Deep(Regression):
    """The same with blocks, a weight with fewer rows than processes, a scalar, and a frozen model."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        block = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 16))
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Sequential(block, deepcopy(block)), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.teacher = Frozen(nn.Linear(4, 1))

    def forward(self, inputs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        guess = self.net(inputs.x) * self.scale
        return F.mse_loss(guess, inputs.y) + F.mse_loss(guess, self.teacher(inputs.x)), self.metrics(guess)


@dataclass
class Samples:
    """Data in which sample i of step s is a function of (s, i).

    nan: (step, sample) with a NaN in its input.
    bad: bad samples, (reason, where), by step.
    stop: step at which to raise KeyboardInterrupt.
    terminate: step at which to send SIGTERM.
    ending: step at which to send a signal that the process cannot catch, and that signal.
    full: step from which this process can write no file of more than 300 bytes, as on a full disk.
    pause: seconds before each step.
    hang: step at which to read for ever.
    """

    size: int = 8
    nan: tuple[int, int] | None = None
    bad: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    stop: int | None = None
    terminate: int | None = None
    ending: tuple[int, signal.Signals] | None = None
    full: int | None = None
    pause: float = 0.0
    hang: int | None = None
    closed: bool = False

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[Pairs]]]:
        share = self.size // world_size
        try:
            for step in range(start_step, num_steps):
                if step == self.stop:
                    raise KeyboardInterrupt
                if step == self.terminate:
                    os.kill(os.getpid(), signal.SIGTERM)
                if self.ending and step == self.ending[0]:
                    os.kill(os.getpid(), self.ending[1])
                if step == self.full:
                    sys.dont_write_bytecode = True  # it would be cut off at the limit too, in silence
                    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
                time.sleep(600 if step == self.hang else self.pause)
                batch = self.batch(step, range(rank * share, (rank + 1) * share))
                cuts = range(0, share, micro_batch_size)
                micro = [part(batch, i, micro_batch_size) for i in cuts]
                if rank == world_size - 1:
                    micro[0].bad.extend(self.bad.get(step, []))
                yield micro
        finally:
            self.closed = True

    def batch(self, step: int, samples: range) -> Batch[Pairs]:
        x = torch.randn(self.size, 4, generator=torch.Generator().manual_seed(step))
        y = x.sum(1, keepdim=True)
        if self.nan and self.nan[0] == step:
            x[self.nan[1]] = float("nan")
        keys = [f"step{step}-sample{i}" for i in samples]
        return Batch(Pairs(x[samples.start : samples.stop], y[samples.start : samples.stop]), keys)


def part(batch: Batch[Pairs], start: int, size: int) -> Batch[Pairs]:
    """Return `size` samples of a batch."""
    return Batch(map_tensors(batch.inputs, lambda x: x[start : start + size]), batch.keys[start : start + size])


def train(
    folder: Path, plan: Plan, *, task: Task[Any] | None = None, data: Any = None, work: str = "work"
) -> tuple[Any, Context, list[Event]]:
    """Train in `folder`, with checkpoints in its folder `work`; return the task, its context and the events."""
    events: list[Event] = []
    task = task or Regression()
    ctx = Context(plan.name, folder / "part", folder / work, {}, events.append)
    fit(task, data or Samples(plan.global_batch_size), plan, ctx)
    return task, ctx, events


KILLED = {
    "steps": 40,
    "micro_batch_size": 4,
    "ema_decay": 0.9,
    "grad_clip_norm": 1.0,
    "checkpoint": {"every_steps": 3},
}
BAD = {step: [("truncated", f"shard.tar:{step % 25}")] for step in range(0, 40, 5)}
NUM_BAD = 5  # three of them are read twice


def killed_plan() -> Plan:
    return plan(**KILLED, max_bad_fraction=0.5)


def in_processes(number: int, root: Path, jobs: list[dict[str, Any]], *, code: int = 0) -> str:
    """Run several trainings in one group of processes, and return what they wrote to their standard error.

    They are forked from one process, since importing torch is slow; `code` is the one that it must exit with.
    """
    placed = [{**job, "folder": str(root / job["folder"])} for job in jobs]
    return run_group(__file__, "jobs", json.dumps(placed), number=number, code=code)


def run_group(file: str, *words: str, number: int = 2, code: int = 0) -> str:
    """Run a test module that forks a group of processes, and return what they wrote to their standard error.

    `code` is the one that it must exit with.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, file, *words], env={**os.environ, **group}, stderr=subprocess.PIPE, text=True, timeout=1800
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def fork(number: int, work: Callable[[], None]) -> None:
    """Run the work in forked processes, each with its rank; exit with 1 if one fails, after an end of the others."""
    children = []
    for rank in range(number):
        if not (pid := os.fork()):
            os.environ["RANK"] = str(rank)
            work()
            sys.exit()
        children.append(pid)
    codes: list[int] = []
    for pid in children:
        if any(codes):
            os.kill(pid, signal.SIGKILL)
        codes.append(os.waitpid(pid, 0)[1])
    sys.exit(int(any(codes)))


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"?")


READS: dict[bool, Callable[[torch.device], bool]] = {True: lambda device: False, False: loop.reading_is_free}


def plant_hang(where: str, rank: int, data: Samples) -> None:
    """Let this process hang at a place, if it is the one that does in this case."""

    def sleep(*args: Any, **kwargs: Any) -> Any:
        time.sleep(600)

    def sleep_at_step_6(task: Regression, step: int) -> None:
        if step == 5:
            time.sleep(600)

    heartbeat.INTERVAL, heartbeat.GRACE = 0.5, 1.0
    if where == "reading" and rank == 1:
        data.hang = 5
    elif where == "computing" and rank == 1:
        Regression.before_step = sleep_at_step_6  # type: ignore[method-assign,assignment]
    elif where == "evaluating" and rank == 0:
        Probe.scores = sleep  # type: ignore[method-assign]
    elif where == "saving" and rank == 0:
        checkpoint.publish_folder = sleep


def child(jobs: list[dict[str, Any]]) -> None:
    """Run several trainings in one process group; the error of one is written to `stopped-RANK.txt`."""
    if any("ending" in job for job in jobs):
        heartbeat.SILENCE = 5.0
    with distributed(TrainingRuntime(device="cpu", flight_recorder=50)) as world:
        for job in jobs:
            folder = Path(job["folder"])
            loop.reading_is_free = READS[bool(job.get("reads_wait"))]  # type: ignore[assignment]
            data = Samples(nan=job.get("nan"), bad={2: BAD[5]})
            if job.get("ending") and world.rank == 1:
                data.ending = (5, signal.Signals[job["ending"]])
            if "hang" in job:
                plant_hang(job["hang"], world.rank, data)
            if job.get("terminated_rank") == world.rank:
                data.terminate = 5
            if job.get("full_for_rank") == world.rank:
                data.full = 5
            work = "work"
            if job.get("damaged_for_rank") == world.rank:
                newest = max((folder / "work").glob("step-*"))
                if shards := sorted(newest.glob("shards/*")):
                    damage(shards[world.rank])
                else:
                    work = "damaged-work"
                    shutil.copytree(folder / "work", folder / work)
                    damage(folder / work / newest.name / "model.safetensors")
            world.barrier()
            try:
                plan = Plan.model_validate(job["plan"], context={"eval.probe": Probe, "eval.main_probe": MainProbe})
                toy = Deep if job.get("deep") else Regression
                norm = {"norm": True} if job.get("norm") else {}
                task, *_ = train(folder, plan, task=toy(job.get("dropout", 0.0), **norm), data=data, work=work)
                if world.is_main:
                    save_file(task.state_dict(), folder / "final.safetensors")
            except (UserError, OSError, SystemExit) as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
                (folder / f"stopped-{world.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "slowly":
        slow = Samples(bad=BAD, pause=0.05)
        train(Path(sys.argv[2]), killed_plan(), task=Regression(0.2, norm=True), data=slow)
    else:
        fork(int(os.environ["WORLD_SIZE"]), lambda: child(json.loads(sys.argv[2])))
