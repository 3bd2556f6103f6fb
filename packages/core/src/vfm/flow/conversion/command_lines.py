"""Parse a pasted command line with its launcher and variables of the shell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vfm.base import UserError

# Options of torchrun, accelerate, deepspeed, srun, sbatch and mpirun, without dashes, `-` and `_` being the same.
PER_MACHINE = ("nproc-per-node", "ntasks-per-node", "num-gpus")
IN_ALL = ("num-processes", "ntasks", "n", "np")
MACHINES = ("nnodes", "num-machines", "num-nodes", "nodes", "N")
OPERATORS = {"|", "||", "&&", "&", ";", ">", ">>", "2>&1"}
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


@dataclass(frozen=True)
class CommandLine:
    """A command of another tool.

    Attributes:
        program: The word that names the program; empty if only its options were given.
        words: The words after it.
        processes: Processes on each machine.
        machines: Number of machines.
        notes: Facts that could not be read, such as a number of processes that depends on the machine.
    """

    program: str
    words: list[str]
    processes: int = 1
    machines: int = 1
    notes: tuple[str, ...] = ()

    @property
    def all_processes(self) -> int:
        """Number of processes on all machines."""
        return self.processes * self.machines


def read_command_line(words: Sequence[str], programs: re.Pattern[str]) -> CommandLine:
    """Find the program in a command, or in a script with comments, variables and several commands.

    Args:
        words: The words that the shell passed on, or a single pasted text.
        programs: Matches the word that names the program.

    Raises:
        UserError: If the program is not there, or a quotation is not closed.
    """
    lines = list(_lines(words[0])) if len(words) == 1 else [_cleaned(words)]
    variables = dict(os.environ)
    directives: list[str] = []
    for line in lines:
        if line[0] == "#SBATCH":
            directives += line[1:]
            continue
        while line and (line[0] == "export" or ASSIGNMENT.fullmatch(line[0])):
            name, _, value = line.pop(0).partition("=")
            if value:
                variables[name] = _expanded(value, variables)
        expanded = [_expanded(word, variables) for word in line]
        for index, word in enumerate(expanded):
            if programs.fullmatch(word):
                return _launched(directives + expanded[:index], word, expanded[index + 1 :])
        if expanded and expanded[0].startswith("-"):
            return CommandLine("", _until_operator(expanded))
    raise UserError(f"expected a command with {_example(programs)}, got {' '.join(words)[:80]!r}")


def _lines(text: str) -> Iterator[list[str]]:
    r"""Yield the commands of a text. A line is continued by `\`, by a literal `\n`, or by a line of options."""
    command: list[str] = []
    is_open = False
    for line in re.sub(r"\\n(?=[\s-]|$)", " ", text).splitlines():
        bare = re.sub(r"^\s*(\$|>>>)\s+", "", line).rstrip()
        try:
            words = _cleaned(shlex.split(bare.removesuffix("\\"), comments=not bare.startswith("#SBATCH")))
        except ValueError as error:
            raise UserError(f"not a whole command: {str(error).lower()}: {bare.strip()}") from None
        if command and not is_open and words and not words[0].startswith("-"):
            yield command
            command = []
        command += words
        is_open = bare.endswith("\\")
    if command:
        yield command


def _cleaned(words: Sequence[str]) -> list[str]:
    """Remove the remains of line breaks from words."""
    return [word.strip() for word in words if word.strip(" \t\r\n\\")]


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """Replace variables of the shell whose values are known. The others stay, as `$NAME`."""
    return VARIABLE.sub(lambda match: variables.get(match[1], f"${match[1]}"), word)


def _until_operator(words: Sequence[str]) -> list[str]:
    """Select the words before a pipe, a redirection or the next command."""
    end = next((index for index, word in enumerate(words) if word in OPERATORS or word.startswith((">", "2>"))), None)
    return list(words[:end])


def _launched(launcher: Sequence[str], program: str, rest: Sequence[str]) -> CommandLine:
    words = _until_operator(rest)
    if program.endswith(".sh") and words and words[0].isdigit():  # timm's distributed_train.sh
        return CommandLine(program, words[1:], int(words[0]))
    notes: list[str] = []
    counts: dict[Sequence[str], int] = {}
    for names in (PER_MACHINE, IN_ALL, MACHINES):
        text = _value(launcher, names) or ""
        number = re.match(r"\d+", text)
        if number:
            counts[names] = int(number[0])
        elif text:
            notes.append(f"{text} processes or machines: not a number, so 1 here; set runtime.processes")
    if "deepspeed" in launcher and PER_MACHINE not in counts:
        notes.append("deepspeed starts a process on every GPU: set runtime.processes")
    machines = counts.get(MACHINES, 1)
    processes = counts.get(PER_MACHINE, max(1, counts.get(IN_ALL, machines) // machines))
    return CommandLine(program, words, processes, machines, tuple(notes))


def _value(words: Sequence[str], names: Sequence[str]) -> str | None:
    """Find the value of the last of some options, `--name value` or `--name=value`."""
    value = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, text = word.partition("=")
        bare = name.lstrip("-")
        if name.startswith("-") and (bare if len(bare) == 1 else bare.replace("_", "-")) in names:
            value = text if equals else following
    return value


def _example(programs: re.Pattern[str]) -> str:
    return programs.pattern.replace("\\", "").replace("(.*/)?", "").replace("|", " or ")
