"""The command that converts command lines of other tools to recipes: from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vfm.base import UserError
from vfm.cli.command import DebugOption, command, note, show
from vfm.cli.terminal import completion


@command
def from_(
    tool: Annotated[
        str,
        typer.Argument(
            help="open_clip, timm, clip_benchmark or llava.",
            autocompletion=completion.words("open_clip", "timm", "clip_benchmark", "llava"),
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(help="The command after `--`, or in quotes. Without it, a script on the standard input."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", readable=False, help="File for the recipe. Default: the standard output.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Convert a command line of another tool to a recipe.

    Comments in the recipe name the options without a counterpart, and what differs: vfm from open_clip -- torchrun ...
    """
    from vfm.flow.conversion.tools import convert  # imports the suites

    if output and output.exists():
        raise UserError(f"{output} already exists; choose another name, or remove it first")
    if not words and sys.stdin.isatty():
        raise UserError(
            "expected a command after --, such as: vfm from open_clip -- python -m open_clip_train.main ..."
        )
    recipe = convert(tool, words or [sys.stdin.read()])
    if output is None:
        typer.echo(recipe.text, nl=False)
    else:
        output.write_text(recipe.text, encoding="utf-8")
        show(f"recipe: {output}; check it by: vfm plan {shlex.quote(str(output))}")
    for option in recipe.lost:
        note(f"no counterpart: {option}")
