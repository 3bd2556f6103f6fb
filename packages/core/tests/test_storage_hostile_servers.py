"""Hostile and broken servers: each read ends soon with a reason, after few bytes, and without much memory.

`pytest -s` prints the table of bytes and seconds.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from vfm.storage import http_range, remote
from vfm.storage.remote import read_spans, read_whole
from vfm.storage.remote_spans import RemoteError, Span, version_of

MB = 1 << 20
WANTED = 1000  # bytes of the span
OK, PARTIAL = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 206 Partial Content\r\n"
RANGE = f"Content-Range: bytes 0-{WANTED - 1}/100000\r\n"
Send = Callable[[bytes], None]
Answer = Callable[[Send, str], None]


class Server:
    """Answers every request by a script, and counts the bytes that clients accept."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.sent = answer, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/x.tar"
        self.closed = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closed:
            with suppress(OSError):
                connection, _ = self.socket.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        def send(data: bytes) -> None:
            if self.closed:
                raise OSError
            for start in range(0, len(data), 1 << 14):
                connection.sendall(data[start : start + (1 << 14)])
                self.sent += min(1 << 14, len(data) - start)

        with connection, suppress(OSError):
            head = connection.recv(1 << 16).decode(errors="replace")
            if head:
                self.answer(send, head)


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.closed = True
        server.socket.close()


def says(*parts: str | bytes, endless: bytes = b"", pause: float = 0.0) -> Answer:
    """Send some bytes, and then others for ever if there are any."""

    def answer(send: Send, head: str) -> None:
        for part in parts:
            send(part.encode() if isinstance(part, str) else part)
        while endless:
            send(endless)
            time.sleep(pause)

    return answer


def silent(*parts: str) -> Answer:
    def answer(send: Send, head: str) -> None:
        for part in parts:
            send(part.encode())
        time.sleep(30)

    return answer


def redirects(to: str) -> Answer:
    """Redirect to another host, which ignores ranges, or to itself for ever."""

    def answer(send: Send, head: str) -> None:
        port = head.partition("127.0.0.1:")[2].partition("\r\n")[0] or head.partition("localhost:")[2][:5].strip()
        if to == "localhost" and "Host: localhost" in head:
            send(f"{OK}Content-Length: {100 * MB}\r\n\r\n".encode() + bytes(100 * MB))
        host = "localhost" if to == "localhost" else "127.0.0.1"
        send(f"HTTP/1.1 302 Found\r\nLocation: http://{host}:{port}/x.tar\r\nContent-Length: 0\r\n\r\n".encode())

    return answer


CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
LENGTH = f"Content-Length: {WANTED}\r\n"
BOMB = zlib.compress(bytes(50 * MB), wbits=31)
SERVERS: dict[str, tuple[Answer, str]] = {
    "ignores the range": (says(OK, f"Content-Length: {100 * MB}\r\n\r\n", bytes(100 * MB)), "does not support ranges"),
    "endless body": (says(PARTIAL, RANGE, CHUNKED, endless=CHUNK), "expected at most 1,000 bytes, got more"),
    "gzip bomb": (
        says(PARTIAL, RANGE, f"Content-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n", BOMB),
        "expected plain bytes, got Content-Encoding gzip",
    ),
    "other bytes": (
        says(PARTIAL, f"Content-Range: bytes 5000-{4999 + WANTED}/100000\r\n", LENGTH, "\r\n", bytes(WANTED)),
        "expected bytes 0 to 1000, got 'bytes 5000-5999/100000'",
    ),
    "no Content-Range": (says(PARTIAL, LENGTH, "\r\n", bytes(WANTED)), "expected bytes 0 to 1000, got ''"),
    "more bytes": (says(PARTIAL, RANGE, f"Content-Length: {100 * MB}\r\n\r\n", bytes(100 * MB)), "got more"),
    "fewer bytes": (
        says(PARTIAL, "Content-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n", bytes(10)),
        "short read",
    ),
    "cut off": (says(PARTIAL, RANGE, LENGTH, "\r\n", bytes(10)), "no connection"),
    "a byte now and then": (
        says(PARTIAL, f"Content-Range: bytes 0-{WANTED - 1}/100000\r\n", CHUNKED, endless=b"1\r\n0\r\n", pause=0.05),
        "too slow",
    ),
    "silent in the body": (silent(PARTIAL, RANGE, LENGTH, "\r\n"), "timeout"),
    "silent": (silent(), "timeout"),
    "another version": (
        says(PARTIAL, RANGE, LENGTH, 'ETag: "new"\r\n\r\n', bytes(WANTED)),
        "the file has changed since it was indexed",
    ),
    "redirects to another host": (redirects("localhost"), "does not support ranges (redirected to localhost)"),
    "redirects for ever": (redirects("itself"), "no connection"),
    "fails": (says("HTTP/1.1 500 Fault\r\nContent-Length: 0\r\n\r\n"), "status 500"),
    "no HTTP": (says("SSH-2.0-OpenSSH\r\n", endless=bytes(1000)), ""),
    "endless head": (says(PARTIAL, endless=b"X-Filler: " + b"y" * 60 + b"\r\n"), ""),
    "negative length": (says(PARTIAL, RANGE, "Content-Length: -5\r\n\r\n"), ""),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    monkeypatch.setattr(remote, "TIMEOUT", 3.0)
    monkeypatch.setattr(http_range, "CHUNK_TIMEOUT", 1.0)
    monkeypatch.setattr(http_range, "MEASURED_AFTER", 1.0)


@pytest.mark.parametrize("name", SERVERS)
def test_a_hostile_server_ends_the_read_with_a_reason_after_few_bytes(name: str) -> None:
    answer, reason = SERVERS[name]
    with serving(answer) as server:
        begun = time.monotonic()
        (data,) = read_spans([Span(server.url, 0, WANTED, 100_000, version_of('"old"'))])
        seconds = time.monotonic() - begun
        assert isinstance(data, RemoteError)
        assert reason in str(data)
        assert server.sent < 16 * MB  # what the sockets' buffers take in
    print(f"| {name} | {data.reason} | {server.sent:,} | {seconds:.1f} |")


def test_a_whole_file_without_end_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_range, "MOST", 2 * MB)
    with serving(says(OK, CHUNKED, endless=CHUNK)) as server:
        with pytest.raises(RemoteError, match="expected at most 2,097,152 bytes, got more"):
            read_whole(server.url)
        assert server.sent < 16 * MB


def test_the_right_answer_of_the_expected_version_is_read() -> None:
    body = bytes(range(250)) * 4
    right = says(PARTIAL, RANGE, LENGTH, 'ETag: "old"\r\n\r\n', body)
    with serving(right) as server:
        assert read_spans([Span(server.url, 0, WANTED, 100_000, version_of('"old"'))]) == [body]
    whole = says(OK, LENGTH, "\r\n", body)
    with serving(whole) as server:
        assert read_spans([Span(server.url, 0, WANTED)]) == [body]  # 200 is right if the whole file was requested
        assert read_whole(server.url) == body
