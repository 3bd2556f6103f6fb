"""What a look reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Look:
    """What a path holds.

    Attributes:
        format: its format, in words.
        facts: its contents, a line each.
        problems: what is wrong, a line each with the cure.
        commands: the next commands, for a shell, best first.
    """

    format: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
