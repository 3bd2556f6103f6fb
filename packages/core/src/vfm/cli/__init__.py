"""The command `vfm`. A mistake of the user is one line on standard error and exit code 2, without a traceback.

`command` holds what all commands share. Each other file defines a group of commands with `@command`.
"""

from __future__ import annotations

import gc
import os
import sys

from vfm.base.deferred_imports import defer_unused_imports
from vfm.cli.command import app, note
from vfm.cli.console import OutputError, prepare_streams

# isort: off
from vfm.cli import recipe, finetune, distill, forecast, evaluation, models, search, data  # noqa: F401  (the order of `vfm --help`)
from vfm.cli import conversion, catalogue, installation, store, verification  # noqa: F401
# isort: on

__all__ = ["app", "main"]

# Commands for which imports are much of the time. Trainings, and programs that import vfm, have no stand-ins.
SHORT = ("predict", "embed", "view", "search", "data", "doctor")


def main() -> None:
    """Run the command line (the entry point of the `vfm` script)."""
    gc.set_threshold(10_000)  # imports create many objects that stay, which the collector would walk over and over
    os.environ["PYTHONSAFEPATH"] = "1"  # workers and jobs import nothing from the working folder
    if sys.argv[1:2] and sys.argv[1] in SHORT:
        defer_unused_imports()
    prepare_streams()
    try:
        app(prog_name="vfm")
    except OutputError as error:  # raised for `vfm --help`, which is not a command
        note(f"error: {error}")
        sys.exit(2)
    sys.exit(0)
