"""Remote reads in a process that was forked after its parent had read: at once, and without harm to the parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from range_server import serving

READ = """
import atexit, os, sys, time
import fsspec
from vfm.storage import files, remote

remote.TIMEOUT, remote.PAUSES = 20.0, (0.0,)
fsspec.filesystem("memory").pipe_file("/folder/a.txt", b"text")

def read(path):
    begun = time.monotonic()
    assert files.read_bytes(path) == b"text"
    assert time.monotonic() - begun < remote.TIMEOUT / 2

def fork_and_read(depth):
    child = os.fork()
    if not child:
        read(sys.argv[1])
        if depth:
            fork_and_read(depth - 1)
        begun = time.monotonic()
        atexit._run_exitfuncs()
        assert time.monotonic() - begun < 0.9  # fsspec waits a second for a loop that does not run
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    read(sys.argv[1])

read(sys.argv[1])
fork_and_read(1)
"""

COPY = """
import os, sys, time
from vfm.data.reading.shard_cache import CacheSettings, ShardCache
from vfm.storage.remote_spans import Span

cache = ShardCache(CacheSettings(sys.argv[2], 1000))

def copy(name):
    span = Span(f"{sys.argv[1]}/{name}", 0, 4, 4)
    until = time.monotonic() + 10
    while cache.read(span) != b"text":
        assert time.monotonic() < until
        time.sleep(0.01)

copy("a.txt")
child = os.fork()
if not child:
    copy("b.txt")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def run(script: str, *words: str) -> None:
    """Run a script in a process of its own, since a fork would inherit the threads of the other tests."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", ["http", "memory"])
def test_a_forked_process_reads_at_once_and_leaves_the_connections_of_its_parent(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with serving(tmp_path) as server:
        run(READ, f"{server.url}/a.txt" if protocol == "http" else "memory://folder/a.txt")


def test_a_forked_process_copies_shards_into_the_cache(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    with serving(tmp_path) as server:
        run(COPY, server.url, str(tmp_path / "cache"))
