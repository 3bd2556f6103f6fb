"""An HTTP server of ranges of files, with latency and faults: the other end of the tests and benchmarks of remote data.

`python range_server.py FOLDER --latency 0.05` prints its address and serves until it is ended.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Fault = Callable[[str, int], str | None]
"""Takes a path and how often it was asked for; returns `status CODE`, `short`, `hang`, `no ranges` or None."""

PIECE = 1 << 18  # bytes that are sent at once


class RangeServer(socketserver.ThreadingTCPServer):
    """Serves `/NAME` from a folder. With `alias`, a name is looked up by what that returns for it. `needs` is text
    that a request must have, such as a signature."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self,
        folder: Path,
        *,
        latency: float = 0.0,
        rate: float = 0.0,
        fault: Fault = lambda path, count: None,
        alias: Callable[[str], str] = lambda name: name,
        etag: Callable[[os.stat_result], str] | None = lambda status: f"{status.st_size}-{status.st_mtime_ns}",
        needs: str = "",
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency, self.fault, self.alias, self.etag = folder, latency, fault, alias, etag
        self.needs = needs
        self.rate, self.free = rate, 0.0  # bytes a second over all connections; when the link is free again
        self.requests: Counter[str] = Counter()  # by method
        self.asked: Counter[str] = Counter()  # by path
        self.bytes_sent = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def wait_for_link(self, count: int) -> None:
        """Wait until the link has sent so many bytes after all earlier ones."""
        if self.rate:
            with self.lock:
                self.free = max(self.free, time.monotonic()) + count / self.rate
                wait = self.free - time.monotonic()
            time.sleep(max(0.0, wait))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients may close a connection at any time."""


class _Handler(socketserver.BaseRequestHandler):
    server: RangeServer

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                if not (data := self.request.recv(1 << 16)):
                    return
                waiting += data
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            if not self._answer(head.decode()):
                return

    def _answer(self, head: str) -> bool:
        server = self.server
        method, target, _ = head.split(" ", 2)
        path = target.partition("?")[0].lstrip("/")
        with server.lock:
            server.requests[method] += 1
            server.asked[path] += 1
            fault = server.fault(path, server.asked[path]) or ""
        if server.latency:
            time.sleep(server.latency)
        if fault == "hang":
            time.sleep(3600)
        file = server.folder / server.alias(path)
        if fault.startswith("status"):
            return self._send(f"{fault.split()[1]} Fault")
        if server.needs not in head:
            return self._send("401 Unauthorized")
        if not file.is_file():
            return self._send("404 Not Found")
        status = file.stat()
        size, found = status.st_size, re.search(r"(?i)\nrange: bytes=(\d+)-(\d*)", head)
        mark = f'ETag: "{server.etag(status)}"\r\n' if server.etag else ""
        if not found or fault == "no ranges":
            return self._send("200 OK", mark, size, method, file, 0, size)
        start, stop = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
        if start >= size:
            return self._send("416 Range Not Satisfiable")
        mark += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        sent = start + (stop - start) // 2 if fault == "short" else stop
        return self._send("206 Partial Content", mark, sent - start, method, file, start, sent)

    def _send(
        self,
        status: str,
        lines: str = "",
        size: int = 0,
        method: str = "GET",
        file: Path | None = None,
        start: int = 0,
        stop: int = 0,
    ) -> bool:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{lines}\r\n"
        self.request.sendall(head.encode())
        if file and method == "GET":
            with file.open("rb") as opened:
                for first in range(start, stop, PIECE):
                    count = min(PIECE, stop - first)
                    self.server.wait_for_link(count)
                    self.request.sendfile(opened, first, count)
            with self.server.lock:
                self.server.bytes_sent += stop - start
        return True


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[RangeServer]:
    """Serve a folder from threads of this process."""
    with RangeServer(folder, **options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def main() -> None:
    """Serve a folder; names of shards beyond the files there repeat them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second over all connections; 0: no limit")
    parser.add_argument("--failing", type=float, default=0.0, help="share of the requests that fail")
    chosen = parser.parse_args()
    draw = random.Random(0)
    count = len(list(chosen.folder.glob("*.tar")))

    def fault(path: str, number: int) -> str | None:
        return "status 500" if draw.random() < chosen.failing else None

    def alias(name: str) -> str:
        if (chosen.folder / name).is_file():
            return name
        stem, _, end = name.rpartition(".")
        return f"{int(stem) % count:06d}.{end}" if stem.isdecimal() else name

    options = {"latency": chosen.latency, "rate": chosen.rate, "fault": fault, "alias": alias}
    with RangeServer(chosen.folder, **options) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
