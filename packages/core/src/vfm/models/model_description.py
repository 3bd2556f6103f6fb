"""A description of a model on disk. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelDescription:
    """A model on the disk.

    Attributes:
        format: Library and layout.
        model: How to name the model in `vfm eval`, `embed` and other commands; empty if the architecture is unknown.
        facts: Its architecture and size, and other contents that the trainer saved.
        problems: Reasons why it cannot be used.
    """

    format: str
    model: str = ""
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
