"""The command `vfm`: one verb each, one line for a mistake, exit code 2 for what the user can mend.

`command` has the rule for mistakes. A file beside it brings verbs by `@verb`, once it is named in the import below.
"""

from __future__ import annotations

import sys

from vfm.cli.command import app

# isort: off
from vfm.cli import running, judging, using, exporting, looking, keeping  # noqa: F401  (in the order of `vfm --help`)
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Entry point."""
    app(prog_name="vfm")
    sys.exit(0)
