"""All commands, in the order of `vfm --help`."""

from __future__ import annotations

from vfm.cli.command import app

# isort: off
from vfm.cli import plan, recipe, finetune, distill, forecast, evaluation, models, search, data  # noqa: F401
from vfm.cli import conversion, catalogue, installation, store, verification  # noqa: F401
# isort: on

__all__ = ["app"]
