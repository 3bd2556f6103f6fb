"""CPU seconds, bytes written and peak memory of a benchmark's process and of its processes that have ended."""

from __future__ import annotations

import resource
from pathlib import Path

BOTH = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def cpu_seconds() -> float:
    """Compute the CPU seconds in user and system mode."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, BOTH))


def system_seconds() -> float:
    """Compute the CPU seconds in system mode, such as for reading, writing and mapping files."""
    return sum(used.ru_stime for used in map(resource.getrusage, BOTH))


def bytes_written() -> int:
    """Read the number of bytes passed to the system to be written."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").partition("wchar:")[2].split()[0])


def peak_mib() -> float:
    """Read the peak memory of this process or of the largest of its processes, whichever is larger."""
    # Not RUSAGE_SELF: it starts with the peak of the process that started this one.
    own = int(Path("/proc/self/status").read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024
