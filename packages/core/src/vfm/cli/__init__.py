"""The command `vfm`. A mistake of the user is one line on standard error and exit code 2, without a traceback.

`command` holds what all commands share. Each other file defines a group of commands with `@command`. `main` imports
the file of the command that is called, and `commands` all of them.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from vfm.base.deferred_imports import defer_unused_imports

__all__ = ["app", "main"]

# The commands of each file, so that a command is not slower for every other one.
FILES = {
    "plan": ("plan",),
    "recipe": ("run", "step", "init"),
    "finetune": ("finetune", "classify"),
    "distill": ("distill",),
    "forecast": ("forecast",),
    "evaluation": ("eval",),
    "models": ("embed", "predict", "view", "export"),
    "search": ("search",),
    "data": ("data",),
    "conversion": ("from",),
    "catalogue": ("models", "recipes"),
    "installation": ("stages", "plugins", "schema", "doctor"),
    "store": ("show", "runs", "report", "clean"),
    "verification": ("verify",),
}
OPEN_FILES = 4096  # of this process, and of each of its workers
# Commands for which imports are much of the time. Trainings, and programs that import vfm, have no stand-ins.
SHORT = ("predict", "embed", "view", "search", "data", "doctor")


def main() -> None:
    """Run the command line (the entry point of the `vfm` script)."""
    gc.disable()  # imports create many objects that stay, which the collector would walk over and over
    os.environ["PYTHONSAFEPATH"] = "1"  # workers and jobs import nothing from the working folder
    _allow_open_files()
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in SHORT:
        defer_unused_imports()
    files = [file for file, commands in FILES.items() if word in commands]
    import_module(f"{__name__}.{files[0] if files else 'commands'}")  # all of them for --help, a path or a wrong name
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    import_module(f"{__name__}.command").run_app()


def _allow_open_files() -> None:
    """Raise the soft limit of open files, because datasets keep shards open. Programs that import vfm do not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = OPEN_FILES if hard == unlimited else min(OPEN_FILES, hard)
    if soft != unlimited and soft < wanted:
        with suppress(ValueError, OSError):  # a system may allow fewer than its limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def __getattr__(name: str) -> Any:
    if name == "app":
        return import_module(f"{__name__}.commands").app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
