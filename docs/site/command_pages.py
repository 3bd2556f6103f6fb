"""Command reference: every command with its arguments and options, generated from the rows that `--help` prints."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from escaping import escaped
from typer.core import TyperArgument, TyperGroup

from vfm.cli import app

PAGE = "commands/index.md"
OWN = {"help"}  # an option of every command


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the page."""
    commands = list(all_commands())
    rows = [f"| [`{' '.join(path)}`](#{'-'.join(path)}) | {_first_line(command)} |" for path, command in commands]
    yield PAGE, "\n".join([_PAGE, *rows, *(_section(path, command) for path, command in commands)]) + "\n"


def all_commands() -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    """Yield the words and the definition of each command, those of groups included, in the order of `vfm --help`."""
    queue = [(("vfm",), typer.main.get_command(app))]
    while queue:
        path, command = queue.pop(0)
        if isinstance(command, TyperGroup):
            queue[:0] = [((*path, name), inner) for name, inner in command.commands.items() if not inner.hidden]
        else:
            yield path, command


def _first_line(command: typer.core.TyperCommand) -> str:
    return escaped((command.help or "").partition("\n")[0])


def _section(path: tuple[str, ...], command: typer.core.TyperCommand) -> str:
    """Return the heading of a command, its usage, its text and the tables of its arguments and options."""
    context = typer.Context(command, info_name=" ".join(path))
    usage = " ".join([*path, *command.collect_usage_pieces(context)])
    about = (command.help or "").replace("\f", "").strip()
    parts = [f"\n## {' '.join(path)}\n", f"```text\n{usage}\n```\n", escaped(about), ""]
    arguments = [param for param in command.params if isinstance(param, TyperArgument)]
    options = [param for param in command.get_params(context) if param not in arguments and param.name not in OWN]
    for kind, params in (("argument", arguments), ("option", options)):
        records = [record for param in params if (record := param.get_help_record(context))]
        if records:
            rows = [f"| `{name.strip()}` | {escaped(' '.join(about.split()))} |" for name, about in records]
            parts += [f"| {kind} | description |\n|---|---|", *rows, ""]
    return "\n".join(parts)


_PAGE = """# Command line

Every command of `vfm` with all of its options, as `vfm COMMAND --help` prints them. `vfm --help` lists the commands and
`vfm --version` prints the version. `vfm --install-completion` completes commands in your shell, and `--show-completion`
prints the script for it. A mistake is one line on standard error with exit code 2. An interrupted command exits with
130, and the same command resumes it.

| command | description |
|---|---|"""
