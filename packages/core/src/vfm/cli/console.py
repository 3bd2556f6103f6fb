"""The standard streams of the command: closed, or not in UTF-8."""

from __future__ import annotations

import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Give the process the standard streams that it was started without, and make all text printable.

    Without this, the next file that is opened would become the standard output (`vfm run >&-`), and a character that
    the terminal's encoding lacks would end a run.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (for as long as the process)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # tests put streams of their own in place
            stream.reconfigure(errors="backslashreplace")
