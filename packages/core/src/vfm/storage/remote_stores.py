"""fsspec's file systems, and threads for blocking ones, for this process. A forked process opens them anew.

It inherits the objects of its parent, but not the threads that serve them.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import fsspec
import fsspec.asyn

THREADS = 32

_inherited: list[Any] = []  # kept, since fsspec closes the connections of a file system that is dropped


def _open(host: tuple[str, str]) -> Any:
    return fsspec.core.url_to_fs("://".join(host) + "/")[0]


_opened = lru_cache(_open)


def store_of(protocol: str, host: str) -> Any:
    """Open the file system of a protocol and a host. All threads share it, and so its connections."""
    return _opened((protocol, host))


@lru_cache
def threads() -> ThreadPoolExecutor:
    """Start the threads for file systems without an asynchronous interface."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="remote")


def _keep_loop() -> None:
    """Keep the event loop before a fork, since fsspec forgets it in the forked process first."""
    _inherited[:1] = [fsspec.asyn.loop[0]]


def _start_anew() -> None:
    """Forget the file systems and the threads of the parent in a forked process."""
    global _opened
    _inherited.append(_opened)
    _opened = lru_cache(_open)
    threads.cache_clear()
    fsspec.asyn.reset_lock()  # another thread may have held it
    _leave_selector(_inherited[0])


def _leave_selector(loop: asyncio.AbstractEventLoop | None) -> None:
    """Replace the selector of the parent's event loop by an empty file in this process.

    Linux keeps one set of watched connections (epoll) for both processes. A forked process that closes the parent's
    connections, as fsspec does when Python ends, would remove them from it, and the parent would wait in vain.
    """
    selector = getattr(loop, "_selector", None)
    if selector is not None and hasattr(selector, "fileno"):  # kqueue and epoll have one
        empty = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(empty, selector.fileno(), inheritable=False)
        os.close(empty)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep_loop, after_in_child=_start_anew)
