"""A console that escapes control characters and tolerates a closed pipe, for all terminal output."""

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
)  # replacements for the non-ASCII characters that vfm itself prints


class TerminalConsole(Console):
    """A console that shows control and bidirectional characters as escapes, and tolerates a closed pipe."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, with unprintable text as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._printable(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to rich's text. Escaping comes first, since rich would drop some control characters."""
        return super().render_str(visible(text), **options)

    def _printable(self, text: str) -> str:
        text = visible(text)
        if text.isascii() or self.encoding.startswith("utf"):
            return text
        return text.translate(PLAIN).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        """Print nothing from now on, because the reader has ended (`vfm run | head`). The command continues."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
