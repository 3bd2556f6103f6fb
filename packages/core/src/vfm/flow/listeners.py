"""The listeners of vfm itself: the console, JSON lines (always on) and TensorBoard. A plugin may bring more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pluggy
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vfm.config import UserError
from vfm.events import Event
from vfm.hookspecs import hookimpl


class RateColumn(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """The rate over the last seconds, or over all where the task has ended."""
        speed = task.finished_speed or task.speed
        return Text(f"{number(speed)} {task.fields['unit']}/s" if speed else "", style="cyan")


def number(value: Any) -> str:
    """A number as people like to read it: three significant digits, thousands apart."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")


class ConsoleListener:
    """Progress bars with rate and ETA on a terminal; a plain line now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.bars: Progress | None = None
        self.bar: dict[str, TaskID] = {}
        self.running: set[str] = set()  # several at a time perhaps, whose bars are shown together
        self.last_line = 0.0

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Shows what is worth showing."""
        show = getattr(self, f"on_{event.type}", None)
        if show:
            show(event.stage, event.data)

    def on_stage_started(self, stage: str, data: dict[str, Any]) -> None:
        """Makes room for the stage's bar."""
        self.running.add(stage)
        again = " (goes on where it stopped)" if data["status"] == "resume" else ""
        self.say(f"[bold]{stage}[/] [dim]{data['kind']}{again}[/]")
        if self.console.is_terminal and not self.quiet and not self.bars:
            columns = (
                SpinnerColumn(),
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                RateColumn(),
            )
            times = (
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[shown]}[/]"),
            )
            self.bars = Progress(*columns, *times, console=self.console, transient=True, speed_estimate_period=10)
            self.bars.start()

    def on_progress(self, stage: str, data: dict[str, Any]) -> None:
        """Moves the bar."""
        shown = "  ".join(f"{key} {number(value)}" for key, value in data["shown"].items())
        if self.bars:
            if stage not in self.bar:
                self.bar[stage] = self.bars.add_task(stage, total=data["total"], unit=data["unit"], shown=shown)
            self.bars.update(
                self.bar[stage],
                completed=data["done"],
                total=data["total"],
                unit=data["unit"],
                shown=shown,
                refresh=True,
            )
        elif time.time() - self.last_line > 10:
            self.last_line = time.time()
            self.say(f"  {stage} {data['done']:,}/{data['total']:,} {data['unit']}  {shown}")

    def on_stage_finished(self, stage: str, data: dict[str, Any]) -> None:
        """Closes the bar and says what came of the stage."""
        self.running.discard(stage)
        if self.bars and stage in self.bar:
            self.bars.remove_task(self.bar.pop(stage))
        if not self.running:
            self.close()
        if data["cached"]:
            self.say(f"[green]✓[/] [bold]{stage}[/] [dim]{data['id']}, cached[/]")
            return
        worth = [(key, value) for key, value in data["numbers"].items() if not key.startswith("sys/")][:4]
        numbers = "  ".join(f"{key} {number(value)}" for key, value in worth)
        self.say(f"[green]✓[/] [bold]{stage}[/] {data['seconds']:.1f} s [dim]{data['id']}[/]  {numbers}")

    def on_log(self, stage: str, data: dict[str, Any]) -> None:
        """A line."""
        self.say(f"  [dim]{stage or ''}[/] {data['message']}")

    def on_warning(self, stage: str, data: dict[str, Any]) -> None:
        """A line that stands out."""
        self.say(f"  [yellow]![/] {stage or ''}: {data['message']}")

    def say(self, line: str) -> None:
        """Prints a line, unless the user asked for quiet."""
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self.bars:
            self.bars.stop()
        self.bars = None
        self.bar.clear()


class JsonLinesListener:
    """Appends every event to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open(
            "ab", buffering=0
        )  # whole lines: several runs may append, and a full disk keeps none back

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Writes the line."""
        self.stream.write(f"{event.to_json()}\n".encode())

    def close(self) -> None:
        """Closes the file."""
        self.stream.close()


class PipeListener:
    """Events as JSON lines on standard output: how the processes of a step tell the run that started them."""

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Writes the line."""
        sys.stdout.write(event.to_json() + "\n")
        sys.stdout.flush()


class TensorBoardListener:
    """Metrics as TensorBoard scalars, a folder for each stage."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs a package: pip install 'vfm-core[torch,tensorboard]'") from None
        self.directory = directory
        self.new_writer: type[SummaryWriter] = SummaryWriter
        self.writers: dict[str, SummaryWriter] = {}

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Writes the scalars of a `metrics` event."""
        if event.type != "metrics" or event.stage is None:
            return
        if event.stage not in self.writers:
            self.writers[event.stage] = self.new_writer(str(self.directory / event.stage))
        writer: Any = self.writers[event.stage]
        for name, value in event.data["values"].items():
            writer.add_scalar(name, value, event.data["step"])
        writer.flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self.writers.values():
            writer.close()


def sender(manager: pluggy.PluginManager, own: Sequence[Any]) -> Callable[[Event], None]:
    """Tells all listeners. Ours may stop a run (a full disk); one of a plugin that fails is heard no more."""
    for listener in own:
        manager.register(listener)

    def send(event: Event) -> None:
        for hook in list(manager.hook.vfm_event.get_hookimpls()):
            try:
                hook.function(*(event for _ in hook.argnames))
            except Exception as error:
                if hook.plugin in own:
                    raise
                manager.unregister(name=hook.plugin_name)
                failure = f"its listener failed and is heard no more: {type(error).__name__}: {error}"
                send(Event("warning", None, {"message": f"plugin {hook.plugin_name!r}: {failure}"}))

    return send
