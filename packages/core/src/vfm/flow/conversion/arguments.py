"""The options of another tool, and a command line parsed with them as argparse would parse it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from vfm.base import UserError, did_you_mean

T = TypeVar("T")
NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e-?\d+)?")
FALSE = ("false", "no", "0")
TRUE = ("true", "yes", "1")


@dataclass(frozen=True)
class Option:
    """An option of another tool's command.

    Attributes:
        names: Its names without dashes, the usual one first.
        values: Number of values. `1`, `!` for none, `?` for at most one, `*` for any number.
    """

    names: tuple[str, ...]
    values: str


@dataclass(frozen=True)
class OptionTable:
    """All options of a tool, grouped by how they are converted.

    Options are words: `name`, `name|other` with two names, and at the end `!` for a switch, `?` for an optional value,
    `*` for a list.

    Attributes:
        tool: Name of the tool.
        converted: Options that the converter reads.
        elsewhere: Options that need no setting, or are set elsewhere, with an explanation.
        missing: Options without a counterpart.
        underscores: Whether `-` and `_` are the same in names, and switches may have a value, as in transformers.
    """

    tool: str
    converted: str
    elsewhere: Mapping[str, str]
    missing: str
    underscores: bool = False

    @cached_property
    def options(self) -> dict[str, Option]:
        """The options by each of their names."""
        by_name: dict[str, Option] = {}
        for word in " ".join((self.converted, *self.elsewhere, self.missing)).split():
            values = word[-1] if word[-1] in "!?*" else "1"
            option = Option(tuple(word.rstrip("!?*").split("|")), values)
            by_name |= dict.fromkeys(option.names, option)
        return by_name

    @cached_property
    def fates(self) -> dict[str, str]:
        """Explanations for the options that are not converted, by the usual name."""
        fates = dict.fromkeys(self._usual_names(self.missing), "no counterpart")
        for words, fate in self.elsewhere.items():
            fates |= dict.fromkeys(self._usual_names(words), fate)
        return fates

    def _usual_names(self, words: str) -> list[str]:
        return [word.rstrip("!?*").split("|")[0] for word in words.split()]

    def find(self, word: str) -> Option:
        """Find an option by its name with dashes, or by a beginning that only one option has, as argparse does.

        Raises:
            UserError: If the tool has no such option.
        """
        name = word.lstrip("-")
        if self.underscores:
            name = name.replace("-", "_")
        if name in self.options:
            return self.options[name]
        longer = {option for key, option in self.options.items() if key.startswith(name) and len(name) > 1}
        if len(longer) == 1:
            return longer.pop()
        raise UserError(f"{self.tool} has no option {word}{did_you_mean(name, self.options)}")

    def read(self, words: Sequence[str]) -> Arguments:
        """Read the words of a command line.

        Raises:
            UserError: If an option is unknown or has no value.
        """
        arguments = Arguments(self)
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("-") or NEGATIVE_NUMBER.fullmatch(word):
                arguments.positional.append(word)
                continue
            name, equals, text = word.partition("=")
            option = self.find(name)
            values = [text] if equals else []
            most = {"!": int(self.underscores), "?": 1, "1": 1, "*": len(rest)}[option.values]
            while rest and len(values) < most and not _is_option(rest[0]):
                if option.values == "!" and rest[0].lower() not in FALSE + TRUE:
                    break
                values.append(rest.pop(0))
            if option.values == "1" and not values:
                raise UserError(f"{name}: expected a value")
            arguments.values[option.names[0]] = values
        return arguments


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not NEGATIVE_NUMBER.fullmatch(word)


@dataclass
class Arguments:
    """The options of a command line.

    Attributes:
        table: The options that exist.
        values: Values by the usual name of each option, in the order of the command line.
        positional: Words that belong to no option.
        defaults: The tool's defaults that were read for options that were not given.
    """

    table: OptionTable
    values: dict[str, list[str]] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    defaults: dict[str, object] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """Check whether a switch is on."""
        values = self._read(name)
        return values is not None and (not values or values[-1].lower() in TRUE)

    def text(self, name: str, default: str = "") -> str:
        """Get the value of an option, or the tool's default."""
        values = self._read(name)
        if not values:
            return self._default(name, default)
        return values[-1]

    def texts(self, name: str) -> list[str]:
        """Get all values of an option."""
        return self._read(name) or []

    def number(self, name: str, default: float | None = None) -> float | None:
        """Get the number of an option, or the tool's default. Whole numbers are integers.

        Raises:
            UserError: If the value is not a number.
        """
        values = self._read(name)
        if values:
            return as_number(values[-1], f"--{name}")
        return self._default(name, default)

    def pairs(self, name: str) -> dict[str, str]:
        """Get words of the form KEY=VALUE."""
        pairs = {}
        for word in self.texts(name):
            key, _, value = word.partition("=")
            pairs[key] = value
        return pairs

    def numbers(self, name: str) -> list[float]:
        """Get several numbers."""
        return [as_number(text, f"--{name}") for text in self.texts(name)]

    def count(self, name: str, default: int) -> int:
        """Get a whole number, or the tool's default."""
        values = self._read(name)
        if values:
            return round(as_number(values[-1], f"--{name}"))
        return self._default(name, default)

    def shown(self, name: str) -> str:
        """Write an option as on the command line."""
        return " ".join([f"--{name}" if len(name) > 1 else f"-{name}", *self.values.get(name, [])])

    def _read(self, name: str) -> list[str] | None:
        if name not in self.table.options:
            raise KeyError(name)
        return self.values.get(name)

    def _default(self, name: str, default: T) -> T:
        if default is not None and default != "":
            self.defaults[name] = default
        return default


def as_number(text: str, where: str) -> float:
    """Convert a text to a number, an integer if it is whole and written so.

    Raises:
        UserError: If it is not a number.
    """
    try:
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        return float(text)
    except ValueError:
        raise UserError(f"{where}: expected a number, got {text!r}") from None
