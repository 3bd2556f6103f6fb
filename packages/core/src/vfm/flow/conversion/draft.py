"""A recipe that is being converted, with comments on the options of the command line that it does not have."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vfm.flow.conversion.arguments import Arguments, OptionTable
from vfm.flow.conversion.command_lines import CommandLine
from vfm.flow.recipe.yaml_lines import dump, one_line

WIDTH = 118  # of a recipe's lines
Fields = dict[str, Any]


@dataclass
class Draft:
    """A recipe that is being converted from a command line.

    Attributes:
        command: The command line.
        arguments: Its options.
        stages: Fields of the stages.
        runtime: Settings of the runtime of all stages.
        notes: Differences from the other tool, a line each.
        lost: Options without a counterpart, some with the reason.
    """

    command: CommandLine
    arguments: Arguments
    stages: list[Fields] = field(default_factory=list)
    runtime: Fields = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, **fields: Any) -> str:
        """Add a stage and return its name.

        Args:
            kind: Kind of the stage.
            name: Wanted name.
            **fields: Its fields. Empty ones are left out, but not null, because it may replace a default.
        """
        given = {key: value for key, value in fields.items() if value not in ("", [], {})}
        self.stages.append({"kind": kind, "name": name, **given})
        return name

    def lose(self, option: str, why: str = "") -> None:
        """Record that an option, if it was given, has no counterpart with this value."""
        if option in self.arguments.values:
            self.lost.append(self.arguments.shown(option) + (f": {why}" if why else ""))


@dataclass(frozen=True)
class Tool:
    """A tool whose command lines can be converted.

    Attributes:
        programs: Matches the word of a command line that names the program.
        table: Its options.
        convert: Fills a draft.
    """

    programs: re.Pattern[str]
    table: OptionTable
    convert: Callable[[Draft], None]


@dataclass(frozen=True)
class ConvertedRecipe:
    """A recipe with comments.

    Attributes:
        text: The YAML.
        lost: Options without a counterpart.
    """

    text: str
    lost: list[str]


def finished(draft: Draft) -> ConvertedRecipe:
    """Write a draft as a recipe, with comments about options and defaults."""
    arguments = draft.arguments
    table = draft.arguments.table
    lost = []
    elsewhere = []
    for name in arguments.values:
        fate = table.fates.get(name)
        if fate == "no counterpart":
            lost.append(arguments.shown(name))
        elif fate is not None:
            elsewhere.append(f"{arguments.shown(name)}: {fate}")
    lost += draft.lost
    defaults = [f"--{name} {value}" for name, value in arguments.defaults.items()]
    program = " ".join([draft.command.program, *draft.command.words]).strip()
    comments = [
        *_comment(f"From a command of {table.tool}:", [program]),
        *_comment("No counterpart:", lost),
        *_comment("Set elsewhere, or not needed:", elsewhere),
        *_comment("Differs:", [*draft.command.notes, *draft.notes]),
        *_comment(f"Defaults of {table.tool}, written out:", [", ".join(defaults)] if defaults else []),
    ]
    record: Fields = {"runtime": draft.runtime} if draft.runtime else {}
    return ConvertedRecipe("".join(comments) + dump({**record, "stages": draft.stages}), lost)


def _comment(heading: str, lines: list[str]) -> list[str]:
    """Write comments with a heading and lines below it."""
    comments = [f"# {heading}\n"] if lines else []
    for line in lines:
        parts = textwrap.wrap(
            one_line(line), WIDTH - 8, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        comments += [f"#   {part}\n" for part in parts]
    return comments


def not_empty(fields: Fields) -> Fields:
    """Select the fields that have a value."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}
