"""The terminal: what every text on it goes through, and output that is closed, cut off or not in UTF-8."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vfm.visible import visible

PLAIN = str.maketrans({"✓": "+", "✗": "x", "…": "~"})  # of the characters that vfm itself prints


class TerminalConsole(Console):
    """A console that shows control and bidirectional characters as escapes, and outlives the reader of its output."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, all of whose text can be printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._printable(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich's text, which would leave some control characters out."""
        return super().render_str(visible(text), **options)

    def _printable(self, text: str) -> str:
        text = visible(text)
        if text.isascii() or self.encoding.startswith("utf"):
            return text
        return text.translate(PLAIN).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        """Print nothing from now on: the reader has ended (`vfm run | head`), and the command goes on without it."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


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
