"""The app, the consoles, options and error messages that all commands share."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from vfm.base import TerminalConsole, UserError, how_to_install, load_function, redacted
from vfm.cli.terminal import completion
from vfm.cli.terminal.console import OutputError, prepare_streams
from vfm.interfaces import extra_of


class PathGroup(TyperGroup):
    """Commands, and `vfm PATH` for `vfm doctor PATH`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Inspect a path given in place of a command."""
        word = args[0]
        if word not in self.list_commands(ctx) and Path(word).exists():
            args = [LOOK, *args]
        elif "/" in word or Path(word).suffix:
            ctx.fail(f"No such file {word!r}.")
        return super().resolve_command(ctx, args)


LOOK = "doctor"  # the command that looks at a path


app = typer.Typer(
    cls=PathGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# A log file has no width, and the standard output may be closed.
console = TerminalConsole(width=None if sys.stdout and sys.stdout.isatty() else 120)
errors = TerminalConsole(stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="YAML file, or name of a shipped recipe.", autocompletion=completion.recipes)
]
StoreOption = Annotated[Path, typer.Option("--store", readable=False, help="Folder of artifacts and runs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.FIELD=VALUE", help="Override a field of a stage; repeatable."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data-option",
        metavar="FIELD=VALUE",
        help="Field of the stage that imports the data: image_root=/, image_key=..., texts.en=COLUMN; repeatable.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


def parse_jobs(text: str | int) -> int | Literal["ray"]:
    """Parse `--jobs`.

    Raises:
        BadParameter: If it is neither a number from 1 on nor "ray".
    """
    if text == "ray":
        return "ray"
    if not str(text).isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected a number from 1 on or ray, got {text}")
    return int(text)


JobsOption = Annotated[
    Any,
    typer.Option(
        parser=parse_jobs,
        metavar="N|ray",
        help="Stages to run at a time, each with its share of the cores and a GPU, if any. ray: on a Ray cluster.",
    ),
]
DEFAULT_STORE = Path("store")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vfm {version('vfm-core')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Curate, train and evaluate vision foundation models from one recipe.

    Finished stages are cached, interrupted ones resume. A mistake in a recipe is one line with its place and the
    allowed values; the exit code is 2.
    """


class Command(TyperCommand):
    """A command whose message about a missing value says what the option expects."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)  # of click's error, which typer has a copy of
            option = next((option for option in self.params if name in option.opts), None)
            if option is not None:
                about = str(getattr(option, "help", "")).rstrip(".")
                error.message = f"{name}: expected a value: {about[:1].lower()}{about[1:]}"  # type: ignore[attr-defined]
            raise


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command that reports mistakes of the user as lines, with exit code 2 (130 if interrupted)."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> None:
        with interrupts_noted() as interrupts:
            try:
                function(*args, **options)
            except SystemExit as stop:
                if str(stop) != str(stop.code):  # `Preempted` has a message about where training resumes
                    errors.print(escape(str(stop)), highlight=False, soft_wrap=True)
                raise
            except (BrokenPipeError, typer.Exit):
                raise  # if the reader of the output has ended (`vfm schema | head`), typer exits without a message
            except (KeyboardInterrupt, Exception) as error:
                if interrupts or isinstance(error, KeyboardInterrupt):
                    errors.print("\ninterrupted; run the same command again to resume")
                    # If the signal came while a string was being executed (as for a dataclass), `python -m` would later
                    # end by SIGINT, not with 130: CPython keeps a mark, which the next executed string removes.
                    exec("")
                    raise typer.Exit(130) from None
                lines = _explanation(error)
                if options.get("debug") or not lines:
                    raise
                for line in lines:
                    errors.print(f"[red]error:[/] {escape(redacted(line))}", highlight=False, soft_wrap=True)
                raise typer.Exit(2) from None

    name = function.__name__.rstrip("_")  # `from` is a keyword
    return app.command(name, cls=Command)(run)


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Yield the list of received SIGINTs, since some calls of torch turn a KeyboardInterrupt into a TypeError."""
    noted: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    is_main = threading.current_thread() is threading.main_thread()  # only the main thread may set a handler
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # it may be ignored
        yield noted
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _explanation(error: BaseException) -> list[str]:
    if isinstance(error, UserError | OSError | ModuleNotFoundError):
        return error_messages(error)
    if sys.flags.optimize < 2:
        return []
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return [f"python -OO removes docstrings, which some libraries read; run without it ({reason})"]


def error_messages(error: UserError | OSError | ModuleNotFoundError) -> list[str]:
    """List the lines that explain a mistake to the user.

    The list is empty if the error is a bug of vfm.
    """
    if isinstance(error, UserError):
        return str(error).splitlines()
    if isinstance(error, ModuleNotFoundError):
        extra = extra_of(error.name or "")
        return [f"this command needs {error.name}: {how_to_install(extra)}"] if extra else []
    name = error.filename2 or error.filename  # the new name if renaming failed
    where = f"{name}: " if name else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [f"{where}no space left on the disk; finished artifacts are intact: free some space and run again"]
    return [f"{where}{error.strerror or error}"]


def show(line: str) -> None:
    """Print a line without credentials, markup or wrapping."""
    console.print(escape(redacted(line)), highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Print a line on standard error, without credentials."""
    errors.print(escape(redacted(line)), highlight=False, soft_wrap=True)


def show_results(directory: Path) -> None:
    """Print the result tables of a finished run."""
    for table in load_function("vfm.report.result_tables:result_tables")(directory):
        console.print(table)


def run_app() -> None:
    """Run the command of the command line, and end the process."""
    prepare_streams()
    try:
        app(prog_name="vfm")
    except OutputError as error:  # raised for `vfm --help`, which is not a command
        note(f"error: {error}")
        sys.exit(2)
    sys.exit(0)
