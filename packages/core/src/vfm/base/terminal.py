"""A console that every text for a terminal goes through: control characters as escapes, output that is cut off."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vfm.base.visible import visible

PLAIN = str.maketrans(
    {"✓": "+", "✗": "x", "…": "~", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{NO-BREAK SPACE}": " "}
)  # of the characters that vfm itself prints


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
