"""The bar of a run: rates from updates that are far apart, and lines that fit any width without losing digits."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from PIL import Image
from rich.console import Console
from rich.progress import Task

from vfm.data.pairs.stages import Pairs
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.flow.listeners.progress_bar import Pace, ProgressLine, clock_time
from vfm.interfaces import Context, Event


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_updates_a_minute_apart_have_a_rate_and_a_time_that_goes_down() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(3):
        clock.now = 60.0 * step
        pace.update(10 * step)
    assert pace.rate == pytest.approx(1 / 6)
    assert pace.remaining(100) == pytest.approx(480)
    clock.now += 45
    assert pace.remaining(100) == pytest.approx(435)
    clock.now += 10_000
    assert pace.remaining(100) == 0


def test_the_rate_is_that_of_the_last_half_minute_and_not_of_the_steps_before_a_resume() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.update(5_000)  # where the training resumes
    assert pace.rate is None
    assert pace.remaining(6_000) is None
    for second in range(1, 101):
        clock.now = second
        pace.update(5_000 + (second if second <= 50 else 50 + 3 * (second - 50)))
    assert pace.rate == pytest.approx(3)
    pace.update(0)  # other work under the same name
    assert pace.rate is None


def line(width: int, done: int, total: int | None, seconds: float, name: str = "clip", **shown: float) -> str:
    console = Console(width=width, color_system=None, force_terminal=True)
    clock = Clock()
    pace = Pace(clock)
    pace.update(0)
    clock.now = seconds
    pace.update(done)
    words = [f"{key} {value}" for key, value in shown.items()]
    fields = {"pace": pace, "num_units": total, "unit": "samples", "shown": words}
    task = Task(0, name, None, done, _get_time=clock, fields=fields)
    task.start_time = 0.0
    with console.capture() as captured:
        console.print(ProgressLine(console).render(task))
    return captured.get().rstrip("\n")


def test_sixty_columns_show_all_of_the_progress() -> None:
    shown = line(60, 12_800_000, 128_000_000, 3600, loss=2.345)
    assert "12,800,000/128,000,000" in shown
    assert "ETA 9:00:00" in shown
    assert "loss" not in shown
    assert "3,556 samples/s" in line(80, 12_800_000, 128_000_000, 3600)
    assert "loss 2.345" in line(120, 12_800_000, 128_000_000, 3600, loss=2.345)


@given(
    st.integers(32, 130),
    st.integers(1, 10**9),
    st.integers(1, 10**9),
    st.floats(0.1, 10**6),
    st.text("abc", min_size=1),
)
def test_at_any_width_the_line_fits_and_no_number_is_cut(
    width: int, done: int, more: int, seconds: float, name: str
) -> None:
    total = done + more
    wide = line(400, done, total, seconds, name, loss=1.25)
    shown = line(width, done, total, seconds, name, loss=1.25)
    assert len(shown.rstrip()) < width
    assert "\n" not in shown
    numbers = set(re.findall(r"[\d.,:/]*\d[\d.,:/]*", wide))
    assert set(re.findall(r"[\d.,:/]*\d[\d.,:/]*", shown)) <= numbers
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (754, "12:34"), (3723, "1:02:03"), (360_000, "100:00:00")])
def test_times_are_written_as_clocks_do(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_a_log_file_has_the_time_that_is_left() -> None:
    console = Console(width=120, force_terminal=False)
    listener = ConsoleListener(console)
    with console.capture() as captured:
        listener.vfm_event(Event("stage_started", "clip", {"kind": "clip.train", "status": "new"}))
        for done in (1, 2):
            listener.last_line.clear()
            listener.vfm_event(Event("progress", "clip", {"done": done, "total": 2000, "unit": "steps", "shown": {}}))
        listener.close()
    assert re.search(r"clip 2/2,000 steps  ETA \d+:\d\d$", captured.get(), re.MULTILINE)


def test_a_count_without_a_known_total_has_a_rate_and_no_time_that_is_left(tmp_path: Path) -> None:
    shown = line(80, 400, None, 100)
    assert shown.startswith("clip 400 4 samples/s 1:40 so far")
    Image.new("RGB", (4, 4)).save(tmp_path / "white.png")
    for number in range(20_001):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "white.png")
    rows = [f"{number}.png,white\n" for number in range(20_001)]
    (tmp_path / "pool.csv").write_text("path,caption\n" + "".join(rows))
    events: list[Event] = []
    for name in ("pool", "work"):
        (tmp_path / name).mkdir()
    ctx = Context("pool", tmp_path / "pool", tmp_path / "work", {}, events.append)
    Pairs(kind="data.pairs", name="pool", path=str(tmp_path / "pool.csv"), verify=False).run(ctx)
    counts = [(event.data["done"], event.data["total"]) for event in events if event.type == "progress"]
    assert counts == [(2, None), (3, None)]
    console = Console(width=120, force_terminal=False)
    listener = ConsoleListener(console)
    with console.capture() as captured:
        for event in events:
            listener.vfm_event(event)
        listener.close()
    assert re.search(r"pool 2 shards  samples 20,000$", captured.get(), re.MULTILINE)


def test_a_bar_forgets_a_total_that_the_next_work_of_its_stage_does_not_have() -> None:
    listener = ConsoleListener(Console(file=io.StringIO(), width=60, force_terminal=True))
    listener.vfm_event(Event("stage_started", "pool", {"kind": "data.pairs", "status": "new"}))
    assert listener.bars
    lines = []
    for done, total, unit in ((3, 5, "files"), (7, None, "shards"), (9, 2000, "images")):
        data = {"done": done, "total": total, "unit": unit, "shown": {}}
        listener.vfm_event(Event("progress", "pool", data))
        console = Console(width=60)
        with console.capture() as captured:
            console.print(ProgressLine(console).render(listener.bars.tasks[0]))
        lines.append(captured.get())
    listener.close()
    files, shards, images = lines
    assert " 3/5 " in files
    assert shards.startswith("pool 7 ")
    assert "ETA" not in shards
    assert " 9/2,000 " in images


def test_the_end_of_a_stage_shows_shares_in_per_cent_as_tables_do() -> None:
    out = io.StringIO()
    listener = ConsoleListener(Console(file=out, width=120))
    numbers = {"clip acc1": 0.6428, "clip recall": 0.5, "clip seconds": 12.25, "train/loss": 0.6428}
    units = {"clip acc1": "share", "clip recall": "share", "clip seconds": "s"}
    about = {"kind": "eval.zero_shot", "id": "ab12", "seconds": 1.25, "cached": False}
    listener.vfm_event(Event("stage_finished", "zero", {**about, "numbers": numbers, "units": units}))
    line = out.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    assert line == "✓ zero 1.2 s ab12  clip acc1 64.3 %  clip recall 50.0 %  clip seconds 12.25 s  train/loss 0.643\n"
