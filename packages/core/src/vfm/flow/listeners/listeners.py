"""Listeners for the console and for JSON lines. `trackers` has others, and plugins may add more."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pluggy
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from vfm.base import PERCENT_UNITS, UserError, quantity, redacted
from vfm.flow.listeners.progress_bar import Pace, clock_time, counted, progress_display
from vfm.interfaces import Event, hookimpl
from vfm.storage.chained_lines import START, chained, end_of_open
from vfm.storage.locks import exclusive, open_lock, share_lock


def number(value: Any) -> str:
    """Format a number with three significant digits and thousands separators."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _with_unit(value: Any, unit: str) -> str:
    """Format a measured value as in tables: shares in per cent."""
    if unit in PERCENT_UNITS:
        return quantity(value, unit)
    return f"{number(value)} {unit}".rstrip()


class ConsoleListener:
    """Shows progress bars with rate and ETA on a terminal, or a plain line every ten seconds elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.bars: Progress | None = None
        self.bar: dict[str, TaskID] = {}
        self.pace: dict[str, Pace] = {}
        self.running: set[str] = set()  # with `jobs` there are several, with one bar each
        self.warned: set[tuple[str, str]] = set()
        self.last_line: dict[str, float] = {}  # time of the last progress line of each stage

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Show an event, if there is an `on_TYPE` method for its type."""
        show = getattr(self, f"on_{event.type}", None)
        if show:
            show(event.stage, event.data)

    def on_stage_started(self, stage: str, data: dict[str, Any]) -> None:
        """Print the name of the stage, and start the progress display."""
        self.running.add(stage)
        resumed = " (resumes)" if data["status"] == "resume" else ""
        self.say(f"[bold]{stage}[/] [dim]{escape(data['kind'])}{resumed}[/]")
        if self.console.is_terminal and not self.quiet and not self.bars:
            self.bars = progress_display(self.console)
            self.bars.start()

    def on_progress(self, stage: str, data: dict[str, Any]) -> None:
        """Move the bar, or print a line."""
        words = [f"{key} {number(value)}" for key, value in data["shown"].items()]
        pace = self.pace.setdefault(stage, Pace())
        pace.update(data["done"])
        if self.bars:
            facts = {"num_units": data["total"], "unit": data["unit"], "shown": words}
            if stage not in self.bar:
                self.bar[stage] = self.bars.add_task(stage, total=None, pace=pace, **facts)
            self.bars.update(self.bar[stage], completed=data["done"], refresh=True, **facts)
        elif time.monotonic() - self.last_line.get(stage, -math.inf) > 10:
            self.last_line[stage] = time.monotonic()
            left = pace.remaining(data["total"])
            eta = f"  ETA {clock_time(left)}" if left else ""
            shown = escape("  ".join(words))
            count = counted(data["done"], data["total"])
            self.say(f"  {stage} {count} {data['unit']}{eta}  {shown}".rstrip())

    def on_stage_finished(self, stage: str, data: dict[str, Any]) -> None:
        """Remove the bar, and print the duration of the stage and its first numbers."""
        self._end(stage)
        if data["cached"]:
            self.say(f"[green]✓[/] [bold]{stage}[/] [dim]{data['id']}, cached[/]")
            return
        units = data.get("units", {})
        words = []
        for key, value in data["numbers"].items():
            if not key.startswith("sys/"):
                words.append(f"{key} {_with_unit(value, units.get(key, ''))}")
        numbers = escape("  ".join(words[:4]))
        self.say(f"[green]✓[/] [bold]{stage}[/] {data['seconds']:.1f} s [dim]{data['id']}[/]  {numbers}")

    def on_stage_failed(self, stage: str, data: dict[str, Any]) -> None:
        """Remove the bar, and print the reason of the failure."""
        self._end(stage)
        self._say_lines(f"[red]✗[/] [bold]{stage}[/]", data["message"])

    def on_log(self, stage: str, data: dict[str, Any]) -> None:
        """Print a message."""
        self._say_lines(f"  [dim]{stage or ''}[/]", data["message"])

    def on_warning(self, stage: str, data: dict[str, Any]) -> None:
        """Print a highlighted message, once, since each process and each epoch may repeat it."""
        warning = (stage, str(data["message"]))
        if warning in self.warned:
            return
        self.warned.add(warning)
        self._say_lines(f"  [yellow]![/] {stage or ''}:", data["message"])

    def _end(self, stage: str) -> None:
        self.running.discard(stage)
        self.pace.pop(stage, None)
        if self.bars and stage in self.bar:
            self.bars.remove_task(self.bar.pop(stage))
        if not self.running:
            self.close()

    def _say_lines(self, prefix: str, message: Any) -> None:
        """Print each line of a message after the stage's name, since lines of other stages may come between."""
        for line in str(message).splitlines() or [""]:
            self.say(f"{prefix} {escape(line)}")

    def say(self, line: str) -> None:
        """Print a line, unless this listener is quiet."""
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove all bars."""
        if self.bars:
            self.bars.stop()
        self.bars = None
        self.bar.clear()


class JsonLinesListener:
    """Appends every event to a file, one JSON object per line, each in a chain with all earlier lines."""

    def __init__(self, path: Path, on_wait: Callable[[str], None] = lambda message: None) -> None:
        """Open the file, and create it if it is missing.

        Args:
            path: The file.
            on_wait: Called with a message, in another thread, if another process does not finish its line, since it
                is suspended for example. No line is written until it does.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):  # opening a FIFO would wait for its reader
            raise UserError(f"{path}: expected a regular file for the events, got a link or something else; remove it")
        # Unbuffered: each line is one write, so that several runs can append, and no line is lost on a full disk.
        self.stream = path.open("ab+", buffering=0)
        share_lock(self.stream.fileno())  # others check this lock to see that the run has not ended
        lock = path.with_name(f".{path.name}.lock")
        self.turns = open_lock(lock)
        advice = f"if it is suspended, resume or end it (`fuser -v {lock}` lists the processes)"
        self.on_wait = partial(on_wait, f"waiting for another run, which writes to {path}: {advice}")
        self.threads = threading.RLock()  # the lock of an open file does not exclude other threads
        self.size = -1
        self.end = START

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Write the event as a line."""
        # Several threads and runs may append, and each line continues the chain.
        with self.threads, exclusive(self.turns, self.on_wait):
            if os.fstat(self.stream.fileno()).st_size != self.size:
                self._catch_up()
            line, end = chained(event.to_json().encode(errors="backslashreplace"), self.end)
            if self.stream.write(line) == len(line):
                self.size = self.size + len(line)
                self.end = end

    def _catch_up(self) -> None:
        """Find the end of the file, to which another run may have appended."""
        descriptor = self.stream.fileno()
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a line that was cut off on a full disk
            size += self.stream.write(b"\n")
        self.size = size
        self.end = end_of_open(descriptor)

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
        os.close(self.turns)


class PipeListener:
    """Writes events as JSON lines into the pipe from which `vfm run` reads the events of its subprocesses.

    If that run was killed, the pipe has no reader, but the step may still save a checkpoint.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Write the event as a line."""
        with suppress(BrokenPipeError):
            self.pipe.write(event.to_json().encode(errors="backslashreplace") + b"\n")
            self.pipe.flush()


def sender(manager: pluggy.PluginManager, required: Sequence[Any]) -> Callable[[Event], None]:
    """Build a function that sends an event to all listeners, without credentials.

    An error in one of the `required` listeners ends the run (a full disk, for example). A plugin's listener that fails,
    or tries to end the process, is removed with a warning.
    """
    for listener in required:
        manager.register(listener)

    def send(event: Event) -> None:
        event = replace(event, data=redacted(event.data))
        for hook in list(manager.hook.vfm_event.get_hookimpls()):
            try:
                hook.function(*[event] * len(hook.argnames))
            except (Exception, SystemExit) as error:
                if hook.plugin in required:
                    raise
                manager.unregister(name=hook.plugin_name)
                failure = f"its listener failed and was removed: {type(error).__name__}: {error}"
                send(Event("warning", None, {"message": f"plugin {hook.plugin_name!r}: {failure}"}))

    return send
