"""fsspec's file systems, and threads for blocking ones, for this process. A forked process opens them anew.

It inherits the objects of its parent, but not the threads that serve them.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import fsspec
import fsspec.asyn

THREADS = 32

_inherited: list[Any] = []  # kept, since fsspec closes the connections of a file system that is dropped
_loop: asyncio.AbstractEventLoop | None = None  # fsspec's, at the last fork


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


def _before_fork() -> None:
    """Keep the event loop, since fsspec forgets it in the forked process first."""
    global _loop
    _loop = fsspec.asyn.loop[0]


def _in_forked_process() -> None:
    """Forget the file systems and the threads of the parent, and detach its event loop."""
    global _opened
    _inherited.append(_opened)
    _opened = lru_cache(_open)
    threads.cache_clear()
    fsspec.asyn.reset_lock()  # another thread may have held it
    if isinstance(_loop, asyncio.SelectorEventLoop):
        _detach(_loop)


def _detach(loop: Any) -> None:
    """Let fsspec close the parent's connections when this process ends, at once and without harm to the parent.

    asyncio has no public way to do this.
    """
    # fsspec waits for a loop that seems to run, but its thread exists in the parent only.
    loop._thread_id = None
    # Linux keeps one set of watched connections (epoll) for both processes. Closed ones would be removed from it, and
    # the parent would wait in vain.
    loop._selector = selectors.DefaultSelector()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_forked_process)
