"""A small plugin for the tests of core: real stages that need no torch, one that can be killed, one that fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

import vfm
from vfm.base import Config
from vfm.interfaces import TablePanel


class Numbers(vfm.Artifact):
    """Some numbers."""

    values: list[int]


class Words(vfm.Artifact):
    """Some words."""

    text: str


class Part(Config):
    """A nested part of a stage."""

    weight: float = Field(1.0, ge=0)
    extra: vfm.Ref[Numbers] | None = None


class Draw(vfm.Stage):
    """Draws numbers from a seed."""

    kind: Literal["toy.draw"] = "toy.draw"
    count: int = Field(3, ge=1)
    seed: int = 0
    mode: Literal["plain", "squared"] = "plain"

    def run(self, ctx: vfm.Context) -> Numbers:
        power = 2 if self.mode == "squared" else 1
        return Numbers.create(ctx.directory, values=[(self.seed * 7 + i) ** power for i in range(self.count)])


class Add(vfm.Stage):
    """Adds the numbers of its inputs, slowly and with checkpoints, and waits for the file `gate` after each."""

    kind: Literal["toy.add"] = "toy.add"
    inputs: list[vfm.Ref[Numbers]] = Field(min_length=1)
    part: Part = Part()
    pause: float = 0.0
    gate: str = ""

    def run(self, ctx: vfm.Context) -> Numbers:
        values = [value for ref in self.inputs for value in ctx.load(ref).values]
        saved = ctx.work / "partial.txt"
        done, total = map(int, saved.read_text().split()) if saved.exists() else (0, 0)
        for index in range(done, len(values)):
            total += values[index]
            temporary = saved.with_suffix(".tmp")
            temporary.write_text(f"{index + 1} {total}")
            temporary.rename(saved)
            time.sleep(self.pause)
            ctx.progress(index + 1, len(values), "numbers", total=total)
            while self.gate and not Path(self.gate).exists():
                time.sleep(0.02)
        ctx.emit("metrics", step=len(values), samples=len(values), values={"train/total": total})
        return Numbers.create(ctx.directory, values=[total])


class Read(vfm.Stage):
    """Reads a file of the user."""

    kind: Literal["toy.read"] = "toy.read"
    path: str = Field(description="the file; give it with --set NAME.path=FILE")

    def sources(self) -> Iterable[str]:
        return [self.path]

    def preflight(self, ctx: vfm.Preflight) -> None:
        if not Path(self.path).read_text().strip():
            raise vfm.UserError(f"{self.path}: the file is empty")

    def run(self, ctx: vfm.Context) -> Words:
        ctx.warn("reading is slow")
        ctx.skip("odd_word", f"{self.path}:1")
        return Words.create(ctx.directory, text=Path(self.path).read_text())


class Address(vfm.Stage):
    """Tells everybody the address that it is given."""

    kind: Literal["toy.address"] = "toy.address"
    path: str
    token: str = ""

    def run(self, ctx: vfm.Context) -> Words:
        ctx.log(f"reading {self.path}")
        ctx.warn(f"{self.path} is slow")
        ctx.skip("odd_word", f"{self.path}: line 1")
        ctx.panel(TablePanel(title="Places", columns=["path"], rows=[[self.path]]))
        return Words.create(ctx.directory, text=self.path)


class Fail(vfm.Stage):
    """Fails in a way of the user's choice."""

    kind: Literal["toy.fail"] = "toy.fail"
    number: vfm.Ref[Numbers]
    how: Literal["bug", "user", "disk", "interrupted", "interrupted in exec"] = "bug"

    def run(self, ctx: vfm.Context) -> Numbers:
        if self.how == "user":
            raise vfm.UserError(f"{self.name}: the numbers do not add up")
        if self.how == "interrupted":  # as in torch.asarray, which makes a TypeError of a KeyboardInterrupt
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise vfm.UserError(f"{self.name}: the numbers cannot be read") from None
        if self.how == "interrupted in exec":  # as where a dataclass is made
            exec("signal.raise_signal(signal.SIGINT)")
        if self.how == "disk":
            raise OSError(28, os.strerror(28), str(ctx.directory / "big.bin"))
        raise RuntimeError("a bug")


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    return [Draw, Add, Read, Address, Fail]
