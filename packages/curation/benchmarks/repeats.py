"""What the benchmarks of this folder share: medians with their spread, the machine, the captions."""

from __future__ import annotations

import gzip
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

NUM_RUNS = 5


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 0) -> str:
    """Return the median with the smallest and largest value: `1,020 (980 to 1,060)`."""
    shown = [f"{value / scale:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def machine(*packages: str) -> dict[str, object]:
    """Return the processor, the cores, how busy they are, and versions."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    named = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # of other work: taken before anything is measured
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numba", "numpy", "pyarrow", *packages)},
    }


def described(where: dict[str, object]) -> str:
    """Return the machine as one line, and whether it did other work."""
    facts = ", ".join(f"{name} {value}" for name, value in where.items())
    load, cores = where["load"], where["cores"]
    assert isinstance(load, float)
    assert isinstance(cores, int)
    return f"{'Beside other work' if load > cores / 4 else 'On idle cores'}: {facts}."


def read_captions(path: Path) -> list[str]:
    """Return the last column of each line of a table with tabs, which may be gzipped."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").rpartition("\t")[2] for line in lines]
