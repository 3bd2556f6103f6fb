"""What every verb shares: the app, the consoles, the common options, and the rule for mistakes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from vfm.config import UserError
from vfm.plugins import extra_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="One verb each, one line for a mistake, exit code 2 for what the user can mend.",
    rich_markup_mode=None,
)
console = Console(width=None if sys.stdout.isatty() else 120)  # a log file has no width of its own
errors = Console(stderr=True)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with vfm.")]
StoreOption = Annotated[Path, typer.Option("--store", readable=False, help="Folder of artifacts and runs.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME.FIELD=VALUE", help="Override a field of a stage.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_STORE = Path("store")


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose mistakes are told in lines, with exit code 2 (130 when interrupted)."""

    @wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except KeyboardInterrupt:
            errors.print("\nstopped; the same command goes on where this one stopped")
            raise typer.Exit(130) from None
        except SystemExit as stop:
            if str(stop) != str(stop.code):  # a training that was told to stop says where it goes on
                errors.print(escape(str(stop)), highlight=False, soft_wrap=True)
            raise
        except BrokenPipeError:
            raise  # the reader of our output has left (`vfm schema | head`): typer ends quietly
        except (UserError, OSError, ModuleNotFoundError) as error:
            if options.get("debug") or not (lines := lines_of(error)):
                raise
            for line in lines:
                errors.print(f"[red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None

    return app.command()(command)


def lines_of(error: UserError | OSError | ModuleNotFoundError) -> list[str]:
    """What to say of a mistake; nothing where it is ours."""
    if isinstance(error, UserError):
        return str(error).splitlines()
    if isinstance(error, ModuleNotFoundError):
        needed = extra_of(error.name or "")
        return [f"this needs {error.name}: pip install '{needed}'"] if needed else []
    name = error.filename2 or error.filename  # of a renaming the new name, of a link its own
    where = f"{name}: " if name else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [f"{where}no space left on the disk; finished artifacts are whole, free some space and run again"]
    return [f"{where}{error.strerror or error}"]


def show_results(directory: Path) -> None:
    """Prints the numbers of a finished run."""
    from vfm.flow.results import result_tables

    for table in result_tables(directory):
        console.print(table)
