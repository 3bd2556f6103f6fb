"""What is known about a model on the disk. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelDescription:
    """A model on the disk.

    Attributes:
        format: library and layout.
        model: the word for `vfm eval`, `embed` and the other commands; empty if the architecture is not known.
        facts: its architecture and size, and what the trainer saved next to it.
        problems: why it cannot be used.
    """

    format: str
    model: str = ""
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
