"""Prepare the standard streams of the command, which may be closed, full, or not in UTF-8."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from vfm.base import UserError


class OutputError(UserError):
    """Raised where the standard output cannot be written."""


class Output(io.FileIO):
    """Write the bytes of the standard output; its errors are not reported as those of a full store."""

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            BrokenPipeError: the reader has ended.
            OutputError: they cannot be written.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what is written when Python ends
            raise OutputError(f"the standard output cannot be written: {error.strerror}") from None


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        own, binary = sys.stdout, io.BufferedWriter(Output(1, "w", closefd=False))
        options: dict[str, Any] = {"line_buffering": own.line_buffering, "write_through": own.write_through}
        sys.stdout = io.TextIOWrapper(binary, own.encoding, own.errors, **options)
