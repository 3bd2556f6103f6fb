"""Tasks over shards, in a module that worker processes can import by name."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vfm.plugin import UserError
from vfm_curation.shard_files import whole_file, write_shard_file


class KilledError(Exception):
    """Stand in for the death of a process, at the place that raises it."""


def square(folder: Path, shard: int) -> int:
    """Write a file with the shard's square."""
    with whole_file(folder / f"{shard}.txt") as part:
        part.write_text(str(shard**2))
    return shard**2


def process_number(folder: Path, shard: int) -> int:
    """Return the number of the process that does a shard."""
    time.sleep(0.05)
    return os.getpid()


def square_after_a_kill(folder: Path, shard: int) -> int:
    """Kill the worker while it writes, the first time that shard 3 is tried."""
    mark = folder / "killed"
    if shard == 3 and not mark.exists():
        mark.touch()
        with whole_file(folder / "3.txt") as part:
            part.write_text("half a file")
            os.kill(os.getpid(), signal.SIGKILL)
    return square(folder, shard)


def deadly(folder: Path, shard: int) -> int:
    """Kill the worker of shard 3 each time."""
    if shard == 3:
        with (folder / "kills").open("a") as kills:
            kills.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return square(folder, shard)


def deadly_after_a_while(folder: Path, shard: int) -> int:
    """Kill the worker of shard 3 while the others work."""
    time.sleep(0.5 if shard == 3 else 0.7)
    return deadly(folder, shard)


def faulty(folder: Path, shard: int) -> int:
    """Raise a user's mistake for shard 3, a bug for shard 5."""
    if shard == 3:
        raise UserError("pool.tar: no such file")
    if shard == 5:
        raise KeyError("oops")
    return square(folder, shard)


def full_disk(folder: Path, shard: int) -> int:
    """Write a shard's file that does not fit: files of this process may have 4 kB. An even shard's is of numpy."""
    sys.dont_write_bytecode = True  # it would be cut off at the limit too, in silence
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        numbers = np.random.default_rng(0).random(10_000)
        if shard % 2 == 0:
            with whole_file(folder / "files" / f"{shard}.npy") as part, part.open("wb") as stream:
                np.save(stream, numbers)
        write_shard_file(folder / "files" / f"{shard}.parquet", pa.table({"x": numbers}), "", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return shard


def no_space(folder: Path, shard: int) -> int:
    """Write to a device that is always full."""
    with pa.OSFile("/dev/full", "w") as stream:
        stream.write(b"1")
    return shard


def tenth_of_a_second(folder: Path, shard: int) -> int:
    """Take a tenth of a second."""
    time.sleep(0.1)
    return shard


def slow(folder: Path, shard: int) -> int:
    """Write a file at the start and take a minute."""
    (folder / f"{shard}.begun").write_text(str(os.getpid()))
    time.sleep(60)
    return shard
