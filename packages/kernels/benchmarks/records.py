"""Rows of results in a folder's CSV files; each is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import io
import json
import os
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from timing import Timing

from vfm_kernels.dispatch.choosing import Size

TO_REPEAT = ("failed", "absent")  # beginnings of notes: such a row is measured again by the next call


@dataclass(frozen=True)
class Row:
    """One implementation of one op at one shape, forward or backward; `note` is its kernels, or why it has no time."""

    op: str
    shape: str
    direction: str
    implementation: str
    relative_error: float | None = None
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    host_milliseconds: float | None = None
    num_bytes: float | None = None
    flops: float | None = None
    roofline_percent: float | None = None
    peak_mib: float | None = None
    launches: float | None = None
    size: str = ""
    way: str = ""
    card: str = ""
    note: str = ""

    @classmethod
    def of(
        cls,
        where: tuple[str, str, str, str],
        size: Size,
        error: float,
        launches: int,
        timing: Timing,
        cost: tuple[float, float],
        floor: float,
    ) -> Row:
        """Return the row of a measurement; its note is the names of the kernels."""
        percent, peak = 100 * floor / timing.median, timing.peak_bytes / 2**20
        times = (timing.median, timing.low, timing.high, timing.host)
        names = " ".join(timing.kernels)
        counts = (*map(float, cost), percent, peak, float(launches))
        sizes = json.dumps([size.rows, size.length, size.width, size.dtype, size.kind])
        return cls(*where, error, *times, *counts, sizes, timing.way, timing.card, names)

    @property
    def group(self) -> str:
        """What `--only` measures: the op."""
        return self.op

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured once: an implementation of an op at a shape in a direction."""
        return (self.op, self.shape, self.direction, self.implementation)


@dataclass(frozen=True)
class Step:
    """One way to train one model; `note` is what was replaced, or why there is no time."""

    model: str
    way: str
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    host_milliseconds: float | None = None
    peak_mib: float | None = None
    launches: float | None = None
    card: str = ""
    note: str = ""

    @classmethod
    def of(cls, model: str, way: str, timing: Timing, launches: int, note: str) -> Step:
        """Return the row of a measurement."""
        times = (timing.median, timing.low, timing.high, timing.host)
        return cls(model, way, *times, timing.peak_bytes / 2**20, float(launches), timing.card, note)

    @property
    def group(self) -> str:
        """What `--steps` measures: the model."""
        return self.model

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured once: a way to train a model."""
        return (self.model, self.way)


@dataclass(frozen=True)
class Setting:
    """One setting of an attention kernel; `note` says why there is no time."""

    kernel: str
    width: str
    settings: str
    milliseconds: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured once: a setting of a kernel for a width."""
        return (self.kernel, self.width, self.settings)


Record = TypeVar("Record", Row, Step, Setting)


class Table(Generic[Record]):
    """The rows of one CSV file, in the order of measurement.

    A line that was cut off, by a stop or a full disk, is no row. Rows that failed are measured again.

    Args:
        path: of the file, which need not exist.
        kind: class of the rows.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path, self.kind = path, kind
        self.rows: list[Record] = []
        if path.exists():
            whole = path.read_text().rpartition("\n")[0]
            self.rows = [self._parsed(row) for row in csv.DictReader(io.StringIO(whole)) if None not in row.values()]
        self.forget(lambda row: row.note.startswith(TO_REPEAT))

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return any(row.key == key for row in self.rows)

    def forget(self, chosen: Callable[[Record], bool]) -> None:
        """Remove the chosen rows. The file is replaced as a whole, so a stop in between loses nothing."""
        self.rows = [row for row in self.rows if not chosen(row)]
        replace(self.path, "".join([self._line(dict(zip(self._names(), self._names(), strict=True))), *self._lines()]))

    def append(self, row: Record) -> None:
        """Write one row; a later failure cannot lose it.

        Raises:
            SystemExit: If it cannot be written, as on a full disk: what cannot be kept need not be measured.
        """
        try:
            with self.path.open("a", newline="") as file:
                file.write(self._line(asdict(row)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SystemExit(f"{self.path}: {error.strerror}; make room and repeat the command to go on") from error
        self.rows.append(row)

    def _lines(self) -> list[str]:
        return [self._line(asdict(row)) for row in self.rows]

    def _line(self, values: dict[str, Any]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._names(), lineterminator="\n").writerow(values)
        return text.getvalue()

    def _names(self) -> list[str]:
        return [field.name for field in fields(self.kind)]

    def _parsed(self, row: dict[str, str]) -> Record:
        types = typing.get_type_hints(self.kind)
        values: dict[str, Any] = {
            name: text if types[name] is str else (float(text) if text else None) for name, text in row.items()
        }
        return self.kind(**values)


def replace(path: Path, text: str) -> None:
    """Write a file that replaces another one at once.

    Raises:
        SystemExit: If it cannot be written, as on a full disk; the other file stays.
    """
    new = path.with_suffix(path.suffix + ".new")
    try:
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise SystemExit(f"{path}: {error.strerror}; make room and repeat the command to go on") from error


def keep_about(path: Path, about: dict[str, str]) -> None:
    """Write what is known of the card and the versions; rows of two cards must not share a folder.

    Raises:
        SystemExit: If the folder has results of another card or of other versions.
    """
    if path.exists():
        before = json.loads(path.read_text())
        for name in ("card", "versions", "sizes"):
            if before.get(name) != about.get(name):
                raise SystemExit(
                    f"{path.parent}: expected results of {name} {about.get(name)}, got {before.get(name)}; "
                    "choose another folder by --out"
                )
    replace(path, json.dumps(about, indent=2) + "\n")
