"""Draw a progress line in any width, with rate, remaining time and further numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

WINDOW = 30.0  # seconds over which a rate is computed; the last two updates if they are further apart
BAR = 30  # maximum width of the bar in columns
SHORTEST_BAR = 6  # columns; in less room there is no bar


@dataclass
class Pace:
    """Measures the rate of some work from the times of its updates, however far apart they are."""

    clock: Callable[[], float] = time.monotonic
    updates: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, done: int) -> None:
        """Record the completed work. A smaller number than before marks the start of other work."""
        now = self.clock()
        if self.updates and done < self.updates[-1][1]:
            self.updates.clear()
        self.updates.append((now, done))
        while len(self.updates) > 2 and self.updates[1][0] < now - WINDOW:
            self.updates.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second. None until there is progress between two updates."""
        if not self.updates:
            return None
        (start, before), (end, after) = self.updates[0], self.updates[-1]
        if after <= before or end <= start:
            return None
        return (after - before) / (end - start)

    def remaining(self, total: int | None) -> float | None:
        """Estimate the seconds until the end, if the rate and the total are known. They decrease between updates."""
        if not self.rate or total is None:
            return None
        moment, done = self.updates[-1]
        return max(0.0, (total - done) / self.rate - (self.clock() - moment))


def clock_time(seconds: float) -> str:
    """Format seconds as `0:05`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def counted(done: int, total: int | None) -> str:
    """Format the finished units, with all of them if their number is known, such as `1,200/3,000` or `1,200`."""
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"


def fitting(words: Sequence[str], width: int) -> list[str]:
    """Select the first words that fit into a width with a space before each. No word is cut."""
    shown: list[str] = []
    for word in words:
        width -= len(word) + 1
        if width < 0:
            break
        shown.append(word)
    return shown


class ProgressLine(ProgressColumn):
    """The line of a task. If it is too narrow, the additional numbers are dropped first, then times, never digits.

    Fields of a task: `pace`, a `Pace`, `num_units`, the total or None, `unit`, and `shown`, words to print next to the
    progress. The task's own total is not used, since rich cannot set it back to None.
    """

    max_refresh = None

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Table:
        """Build the line, at most as wide as the console."""
        pace: Pace = task.fields["pace"]
        width = self.console.width - 1  # some terminals wrap a line that is full
        num_units = task.fields["num_units"]
        total = None if num_units is None else int(num_units)
        count = counted(int(task.completed), total)
        remaining = pace.remaining(total)
        rate = pace.rate
        times = []
        if total is not None:
            times.append(f"ETA {clock_time(remaining)}" if remaining is not None else "ETA -:--")
        if rate:
            times.append(f"{short(rate)} {task.fields['unit']}/s")
        times.append(f"{clock_time(task.elapsed or 0)} so far")
        name = task.description[: max(1, width - len(count) - 2)]
        words = fitting([*times, *task.fields["shown"]], width - len(name) - len(count) - 2)
        left = width - len(name) - len(count) - 2 - sum(len(word) + 1 for word in words) - 1
        line = Table.grid(padding=(0, 1, 0, 0))
        cells = [Text(name, style="bold"), Text(count), Text(" ".join(words), style="cyan")]
        if left >= SHORTEST_BAR and total is not None:
            cells.insert(1, ProgressBar(max(1, total), task.completed, width=min(BAR, left)))  # type: ignore[arg-type]
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        return line


def short(value: float) -> str:
    """Format a rate with three digits, such as `0.0123`, `4.56` or `1,234`."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def progress_display(console: Console) -> Progress:
    """Create a display with a `ProgressLine` for each task."""
    return Progress(ProgressLine(console), console=console, transient=True)
