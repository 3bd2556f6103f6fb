"""Time `vfm plan`, `vfm verify` and `vfm clean` on a store of many small artifacts.

    python packages/core/benchmarks/large_store.py                     # 10,000 artifacts
    python packages/core/benchmarks/large_store.py --artifacts 1000

The recipe has chains of stages that each read the one before. Afterwards its run is removed, so that nothing uses the
artifacts, which are published without waiting for the disk. The seconds are CPU seconds, then seconds by the clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from typer.testing import CliRunner

import vfm
from vfm.cli.command import app
from vfm.flow.plan.plan import Step, make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.runs import open_run

CHAIN = 10  # number of stages in a chain


class Count(vfm.Artifact):
    """Artifact with a single number, which each stage of the large store makes."""

    value: int


class Next(vfm.Stage):
    """Adds one to a number."""

    kind: Literal["benchmark.next"] = "benchmark.next"
    start: int = 0
    after: vfm.Ref[Count] | None = None

    def run(self, ctx: vfm.Context) -> Count:
        """Compute the number."""
        before = ctx.load(self.after).value if self.after else self.start
        return Count.create(ctx.directory, value=before + 1)


def recipe_text(artifacts: int) -> str:
    """Write a recipe with this many stages."""
    lines = ["stages:"]
    for number in range(artifacts):
        rest = f"after: s{number - 1}" if number % CHAIN else f"start: {number}"
        lines.append(f"  - {{kind: benchmark.next, name: s{number}, {rest}}}")
    return "\n".join(lines) + "\n"


def timed(what: str, function: Callable[[], object]) -> object:
    """Print the seconds that a function takes."""
    busy, begun = time.process_time(), time.perf_counter()
    answer = function()
    print(f"{what:<24} {time.process_time() - busy:8.2f} {time.perf_counter() - begun:8.2f}", flush=True)
    return answer


def command(*words: str) -> str:
    """Run a command of vfm in this process, and return the last line of its output."""
    done = CliRunner().invoke(app, list(words))
    if done.exit_code:
        raise SystemExit(done.output)
    return done.stdout.splitlines()[-1]


def publish(steps: Sequence[Step]) -> None:
    """Publish the artifact of each step, as a run does."""
    for number, step in enumerate(steps):
        step.slot.begin()
        Count.create(step.slot.part, value=number)
        inputs = {"kind": step.stage.kind, "identity": step.identity, "inputs": step.inputs, "roots": step.roots()}
        step.slot.publish({**inputs, "sources": {}, "numbers": {}, "finished": "2026-11-30"})


def main() -> None:
    """Make the store and time the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=int, default=10_000)
    count = parser.parse_args().artifacts
    known = {"benchmark.next": Next}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        recipe = parse_recipe(recipe_text(count), known, (), name="r", where="r.yaml")
        steps = make_plan(recipe, store)
        os.fsync = lambda descriptor: None
        timed(f"publish {count:,}", lambda: publish(steps))
        open_run(recipe, steps, store)
        timed("plan", lambda: make_plan(recipe, store))
        planned = timed("plan, and each status", lambda: {step.status for step in make_plan(recipe, store)})
        assert planned == {"cached"}
        print(timed("verify", lambda: command("verify", str(store.root))))
        shutil.rmtree(store.runs)
        print(timed("clean", lambda: command("clean", "--store", str(store.root))))
        assert not store.artifacts()


if __name__ == "__main__":
    main()
