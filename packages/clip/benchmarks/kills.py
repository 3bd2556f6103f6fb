"""Kill trainings after their first checkpoint, resume them, and compare the results bit for bit.

    python packages/clip/benchmarks/kills.py [--kills 20] [--seed 0] [--page FILE]

A small CLIP model is trained in one process, and in two with DDP and with FSDP, and in one and two on tars that a
server sends, where a twentieth of the requests fails. Each training is killed by SIGKILL at a
random moment between its first checkpoint and its end: alternately all of its processes, and the last one only, after
which the others must end by themselves. It is killed again while it resumes, in every second case, and then resumes to
the end. Its metrics and weights must have the bytes of a training that nothing interrupted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vfm.data.streaming.stages import Stream
from vfm.data.synthetic.stages import ShapesPool
from vfm.interfaces import LeftToFirst
from vfm.plugin import Context, Stage, UserError
from vfm.train.parallel import heartbeat
from vfm_clip import ClipTrain
from vfm_clip.train import train_clip

STEPS, EVERY = 40, 4
LONGEST = 90.0  # seconds until the processes that are left are killed
COMPARED = ("metrics.jsonl", "open_clip_model.safetensors")
SERVER = Path(__file__).parents[2] / "core/tests/range_server.py"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "1 process": ({}, "pool"),
    "2 processes, DDP": ({"processes": 2}, "pool"),
    "2 processes, FSDP": ({"processes": 2, "parallel": "fsdp"}, "pool"),
    "1 process, streamed": ({}, "tars"),
    "2 processes, streamed": ({"processes": 2}, "tars"),
}
"""Runtime and data of each case."""


@dataclass
class Training:
    """Runs a training in a folder, in processes forked from this one, because importing torch takes seconds."""

    folder: Path
    data: Path
    runtime: dict[str, Any]

    def __post_init__(self) -> None:
        (self.folder / "part").mkdir(parents=True)

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self.runtime.get("processes", 1))

    def start(self) -> list[int]:
        """Start the processes, and list their ids."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        pids = []
        for rank in range(self.size):
            pid = os.fork()
            if not pid:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(self.size), "LOCAL_WORLD_SIZE": str(self.size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os._exit(self._train(rank))
            pids.append(pid)
        return pids

    def has_checkpoint(self) -> bool:
        """Check whether a checkpoint is complete."""
        return any((self.folder / "work").glob("step-*/meta.json"))

    def _train(self, rank: int) -> int:
        torch.set_num_threads(1)
        heartbeat.INTERVAL, heartbeat.GRACE = 0.5, 2.0  # the processes that are left end sooner
        directory = self.folder / ("part" if rank == 0 else f"scratch-{rank}")
        directory.mkdir(exist_ok=True)
        config = ClipTrain.model_validate(
            {
                "name": "clip", "data": "pool", "model": "ViT-Pico-8-32", "steps": STEPS, "global_batch_size": 16,
                "micro_batch_size": 4, "log_every": 1, "ema_decay": 0.9, "checkpoint": {"every_steps": EVERY},
                "runtime": {"device": "cpu", **self.runtime},
            }
        )  # fmt: skip
        ctx = Context("clip", directory, self.folder / "work", {"pool": self.data}, lambda event: None)
        try:
            with suppress(LeftToFirst):
                train_clip(config, ctx)
        except (UserError, RuntimeError) as error:
            (self.folder / f"ended-{rank}.txt").write_text(str(error))
            return 1
        return 0


def wait(pids: list[int]) -> list[int]:
    """Wait for processes, and list their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def kill(pids: list[int]) -> None:
    """Kill processes that may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end(pids: list[int]) -> list[int]:
    """Wait for processes that should end by themselves, and kill any that wait for one that never came.

    If one is killed before the processes are connected, the first waits. torchrun would end it, and this benchmark runs
    without torchrun.
    """
    timer = threading.Timer(LONGEST, kill, [pids])
    timer.start()
    codes = wait(pids)
    timer.cancel()
    timer.join()
    return codes


def interrupt(training: Training, draw: random.Random, seconds: float, *, only_last: bool) -> bool:
    """Kill a training after its first checkpoint, within some seconds. Tell whether it was still running."""
    pids = training.start()
    while not training.has_checkpoint():
        time.sleep(0.01)
    time.sleep(draw.uniform(0, seconds))
    kill(pids[-1:] if only_last else pids)
    return any(end(pids))


def contents(training: Training) -> list[bytes]:
    """Read the files that must be equal."""
    return [(training.folder / "part" / name).read_bytes() for name in COMPARED]


@contextmanager
def data_sets(root: Path) -> Iterator[dict[str, Path]]:
    """Make a pool of 16 tars, and a list of them on a server that fails to answer every twentieth request."""
    stage = ShapesPool.model_validate(
        {"kind": "shapes.pool", "name": "pool", "num_samples": 256, "samples_per_shard": 16}
    )
    pool = make(stage, root / "pool")
    command = [sys.executable, str(SERVER), str(pool), "--failing", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            path = f"{server.stdout.readline().strip()}/{{00000..00015}}.tar"
            tars = Stream(name="tars", path=path, texts="json.en", lanes=2, lane_samples=8)
            if not (pid := os.fork()):  # a process that has made requests cannot be forked
                make(tars, root / "tars")
                os._exit(0)
            if any(wait([pid])):
                sys.exit("the tars could not be listed")
            yield {"pool": pool, "tars": root / "tars"}
        finally:
            server.kill()


def make(stage: Stage, folder: Path) -> Path:
    """Run a stage in a folder."""
    (folder / "work").mkdir(parents=True)
    stage.run(Context(stage.name, folder, folder / "work", {}))
    return folder


def count_equal(name: str, kills: int, root: Path, data: dict[str, Path], draw: random.Random) -> str:
    """Kill and resume trainings, and describe the results in a row of a table."""
    runtime, kind = CASES[name]
    unbroken = Training(root / name / "unbroken", data[kind], runtime)
    started = time.monotonic()
    if any(wait(unbroken.start())):
        sys.exit(f"{name}: the training failed without a kill")
    seconds = (time.monotonic() - started) / 2
    expected, equal, killed, tries = contents(unbroken), 0, 0, 0
    while killed < kills:
        training = Training(root / name / str(tries), data[kind], runtime)
        tries += 1
        hit = interrupt(training, draw, seconds, only_last=tries % 2 == 0)
        if hit and tries % 4 > 1:
            hit = interrupt(training, draw, seconds, only_last=tries % 2 == 1) or hit
        if any(wait(training.start())):
            sys.exit(f"{name}: {training.folder}: the resumed training failed")
        killed += hit
        equal += hit and contents(training) == expected
        print(f"{name}: {equal} of {killed} equal, {time.monotonic() - started:.0f} s", flush=True)
    return f"| {name} | {killed} | {equal} |"


def main() -> None:
    """Run all cases, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="trainings that are killed, in each case")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--page", type=Path, help="file for the table")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, data_sets(Path(folder)) as data:
        rows = [count_equal(name, options.kills, Path(folder), data, draw) for name in options.cases or CASES]
    table = "\n".join(["| training | killed after a checkpoint | same bytes after resuming |", "|---|---|---|", *rows])
    print(table)
    if options.page:
        options.page.write_text(f"<!-- {' '.join(['python', *sys.argv])} -->\n\n{table}\n")


if __name__ == "__main__":
    main()
