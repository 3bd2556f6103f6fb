"""Rows of results in a folder's CSV files; each is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import json
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from timing import Timing


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
    num_bytes: float | None = None
    flops: float | None = None
    roofline_percent: float | None = None
    peak_mib: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls, where: tuple[str, str, str, str], error: float, timing: Timing, cost: tuple[float, float], floor: float
    ) -> Row:
        """Return the row of a measurement; its note is the names of the kernels."""
        percent, peak = 100 * floor / timing.median, timing.peak_bytes / 2**20
        times = (timing.median, timing.low, timing.high)
        return cls(*where, error, *times, *cost, percent, peak, " ".join(timing.kernels))

    @property
    def group(self) -> str:
        """What `--only` measures anew: the op."""
        return self.op


@dataclass(frozen=True)
class Step:
    """One way to train one model; `note` is what `accelerate` replaced, or why there is no time."""

    model: str
    way: str
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    peak_mib: float | None = None
    note: str = ""

    @classmethod
    def of(cls, model: str, way: str, timing: Timing, note: str) -> Step:
        """Return the row of a measurement."""
        return cls(model, way, timing.median, timing.low, timing.high, timing.peak_bytes / 2**20, note)

    @property
    def group(self) -> str:
        """What `--steps` measures anew: the model."""
        return self.model


Record = TypeVar("Record", Row, Step)


class Table(Generic[Record]):
    """The rows of one CSV file, in the order of measurement.

    Args:
        path: of the file, which need not exist.
        kind: class of the rows.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path, self.kind = path, kind
        self.rows: list[Record] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [self._parsed(row) for row in csv.DictReader(file)]

    def drop(self, group: str) -> None:
        """Remove the rows of one op or model, which will be measured anew."""
        self.rows = [row for row in self.rows if row.group != group]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._names())
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def append(self, row: Record) -> None:
        """Write one row; a later failure cannot lose it."""
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._names()).writerow(asdict(row))

    def _names(self) -> list[str]:
        return [field.name for field in fields(self.kind)]

    def _parsed(self, row: dict[str, str]) -> Record:
        types = typing.get_type_hints(self.kind)
        values: dict[str, Any] = {
            name: text if types[name] is str else (float(text) if text else None) for name, text in row.items()
        }
        return self.kind(**values)


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
    path.write_text(json.dumps(about, indent=2) + "\n")
