"""A plugin for the tests of signals: a stage that works for as long as there is a file, with a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import vfm
from toy_plugin import Numbers


class Hold(vfm.Stage):
    """Counts while the file `hold` exists; its artifact says from which number on it was resumed."""

    kind: Literal["hold.count"] = "hold.count"
    number: vfm.Ref[Numbers]
    silent: bool = False

    def run(self, ctx: vfm.Context) -> Numbers:
        saved = ctx.work / "count.txt"
        start = count = int(saved.read_text()) if saved.exists() else 0
        while Path("hold").exists():
            count += 1
            saved.with_suffix(".tmp").write_text(str(count))
            saved.with_suffix(".tmp").rename(saved)
            if not self.silent or count == start + 1:
                ctx.progress(count, count + 1, "numbers")
            time.sleep(0.1)
        return Numbers.create(ctx.directory, values=[start])


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    return [Hold]
