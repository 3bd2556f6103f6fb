"""Tasks over shards, in a module that worker processes can import by name."""

import os
import signal
import time
from pathlib import Path

from vfm import UserError
from vfm_curation.shard_files import whole_file


def square(folder: Path, shard: int) -> int:
    """Leaves a file with the shard's square."""
    with whole_file(folder / f"{shard}.txt") as part:
        part.write_text(str(shard**2))
    return shard**2


def square_after_a_kill(folder: Path, shard: int) -> int:
    """Its worker is killed in the midst of writing, the first time that shard 3 is tried."""
    mark = folder / "killed"
    if shard == 3 and not mark.exists():
        mark.touch()
        with whole_file(folder / "3.txt") as part:
            part.write_text("half a file")
            os.kill(os.getpid(), signal.SIGKILL)
    return square(folder, shard)


def deadly(folder: Path, shard: int) -> int:
    """Shard 3 kills its worker each time."""
    if shard == 3:
        with (folder / "kills").open("a") as kills:
            kills.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return square(folder, shard)


def deadly_after_a_while(folder: Path, shard: int) -> int:
    """Shard 3 kills its worker while the others are at work."""
    time.sleep(0.5 if shard == 3 else 0.7)
    return deadly(folder, shard)


def faulty(folder: Path, shard: int) -> int:
    """Shard 3 is the user's mistake, shard 5 is ours."""
    if shard == 3:
        raise UserError("pool.tar: no such file")
    if shard == 5:
        raise KeyError("oops")
    return square(folder, shard)


def slow(folder: Path, shard: int) -> int:
    """Says when it begins and takes a minute."""
    (folder / f"{shard}.begun").write_text(str(os.getpid()))
    time.sleep(60)
    return shard
