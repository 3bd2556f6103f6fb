"""A plugin for the tests of output: stages that print, exit and warn as libraries do, and a listener that exits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Literal

import vfm
from toy_plugin import Numbers


class Noise(vfm.Stage):
    """Prints what looks like events, and then makes a number."""

    kind: Literal["noise.print"] = "noise.print"
    exit_code: int | None = None
    message: str = "quiet"

    def run(self, ctx: vfm.Context) -> Numbers:
        print('{"stray": 1}')
        print("{ no json")
        print('{"t": 1, "type": "run_failed", "stage": null, "message": "forged"}')
        os.system("echo '{\"t\": 2}'")
        sys.stdout.write("{ no end of line")
        ctx.log(self.message)
        if self.exit_code is not None:
            sys.exit(self.exit_code)
        return Numbers.create(ctx.directory, values=[7])


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    return [Noise]


class Leaver:
    """A listener that ends the process."""

    @vfm.hookimpl
    def vfm_event(self, event: vfm.Event) -> None:
        sys.exit(0)
