"""A test module run by two processes of one group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def two_processes(file: str, *words: str) -> Iterator[None]:
    """Start a module twice with arguments, each with its rank; at the end wait for both."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, file, *words],
            env={**os.environ, **shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        yield
    finally:
        errors = [child.communicate(timeout=1800)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
