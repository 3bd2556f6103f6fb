"""The result of inspecting a path."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Look:
    """The result of inspecting a path.

    Attributes:
        format: its format, in words.
        facts: its contents, a line each.
        problems: problems and how to fix them, a line each.
        commands: the next commands, for a shell, best first.
    """

    format: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
