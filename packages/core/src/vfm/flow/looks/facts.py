"""The result of inspecting a path."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Look:
    """The result of inspecting a path.

    Attributes:
        format: Its format, in words.
        facts: Its contents, a line each.
        problems: Problems and how to fix them, a line each.
        commands: The next commands, for a shell, best first.
    """

    format: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
