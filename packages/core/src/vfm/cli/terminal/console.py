"""The standard streams of the command, which may be closed, full, or not in UTF-8."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from vfm.base import UserError


class OutputError(UserError):
    """Raised if the standard output cannot be written."""


class Output(io.FileIO):
    """Writes the bytes of the standard output. Its errors are not reported as errors of the store."""

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            BrokenPipeError: If the reader has ended.
            OutputError: If the output cannot be written.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for output that Python flushes at its end
            raise OutputError(f"the standard output cannot be written: {error.strerror}") from None


def prepare_streams() -> None:
    """Open missing standard streams, and make all text printable.

    Without this, the next file to be opened would become the standard output (`vfm run >&-`), and a character that is
    missing in the terminal's encoding would end a run.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (for as long as the process)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # the streams of tests may not have it
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        original = sys.stdout
        binary = io.BufferedWriter(Output(1, "w", closefd=False))
        options: dict[str, Any] = {"line_buffering": original.line_buffering, "write_through": original.write_through}
        sys.stdout = io.TextIOWrapper(binary, original.encoding, original.errors, **options)
