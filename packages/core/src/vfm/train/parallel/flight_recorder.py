"""Torch's flight recorder, which remembers the last collective operations of a process."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from torch._C import _distributed_c10d

__all__ = ["dump_collectives", "record_collectives"]

VARIABLE = "TORCH_FR_BUFFER_SIZE"  # torch reads it when the first process group is opened
DUMPS = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}  # builds for CPUs have no NCCL


def record_collectives(num_operations: int) -> None:
    """Remember the last operations of the process groups that are opened from now on.

    Args:
        num_operations: Number of operations. 0: none, unless the environment sets `TORCH_FR_BUFFER_SIZE`.
    """
    if num_operations:
        os.environ[VARIABLE] = str(num_operations)


def dump_collectives(file: Path) -> None:
    """Write the remembered operations of each library as JSON, with their sizes, states and times, if there are any."""
    recorded = {}
    for library, name in DUMPS.items():
        dump = getattr(_distributed_c10d, name, None)
        record = json.loads(dump(True, False)) if dump else {}
        if record.get("entries"):
            recorded[library] = record
    if recorded:
        with suppress(OSError):  # a full disk must not keep the process alive
            file.write_text(json.dumps(recorded))
