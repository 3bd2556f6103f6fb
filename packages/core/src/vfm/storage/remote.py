"""Read remote files through fsspec, many ranges at a time, with retries and a time limit for each request.

`http(s)://` needs the extra `remote`. `s3://`, `gs://`, `hf://` and others need the package that fsspec names. A read
that fails after the last try gives a `RemoteError` with one of few reasons. Its text has no credentials.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from fsspec.asyn import get_loop, sync

from vfm.base import UserError, redacted
from vfm.storage.credentials import with_credentials
from vfm.storage.http_range import read_range
from vfm.storage.remote_spans import MARKS, IsExpected, RemoteError, RemoteFacts, Span, any_version
from vfm.storage.remote_stores import store_of, threads

T = TypeVar("T")

CONNECTIONS = 128  # requests at a time in one process
TIMEOUT = 60.0  # seconds of one request
PAUSES = (0.25, 0.5, 1.0, 2.0)  # seconds before each further try
AFTER_FAILURE = 30.0  # seconds in which a failed file is tried only once, so that many of its samples wait only once
NOT_FOUND = "not found"

_failed: dict[str, float] = {}  # time of the last failed try, by address


def is_remote(path: str) -> bool:
    """Check whether the path is an address for fsspec."""
    return "://" in path


def without_query(path: str) -> str:
    """Remove the query of a remote address, such as a signature, so that the end of the path is its file's name."""
    return path.partition("?")[0] if is_remote(path) else path


def filesystem(path: str) -> tuple[Any, str]:
    """Look up the fsspec filesystem of a remote address, and the path in it, with the credentials of the environment.

    Raises:
        UserError: If the protocol is unknown, or its package is not installed.
    """
    complete = with_credentials(path)
    try:
        store = store_of(*urlsplit(complete)[:2])
    except ImportError as error:
        raise UserError(f"{redacted(path)}: {error}") from None
    except ValueError as error:
        raise UserError(f"{redacted(path)}: not a valid fsspec address: {error}") from None
    return store, cast("str", store._strip_protocol(complete))


def read_spans(spans: Sequence[Span]) -> list[bytes | RemoteError]:
    """Read the bytes of each span, up to `CONNECTIONS` at a time. A span that cannot be read gives its error."""
    return _all([(span.path, partial(_read_span, *filesystem(span.path), span)) for span in spans])


def begin_span(span: Span) -> Future[bytes | RemoteError]:
    """Request the bytes of a span, and return without waiting. The caller limits the number of requests."""
    request = partial(_read_span, *filesystem(span.path), span)
    reading = _tried(span.path, request, asyncio.Semaphore(1), absent_is_answer=False)
    return asyncio.run_coroutine_threadsafe(reading, get_loop())


async def _read_span(store: Any, inside: str, span: Span) -> bytes:
    data = await _range(store, inside, span.start, span.stop, span.is_version_of)
    if len(data) > span.stop - span.start:
        raise RemoteError(span.path, "the server does not support ranges", final=True)
    if len(data) < span.stop - span.start:
        raise RemoteError(span.path, "short read")
    return bytes(data)


def read_whole(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read a remote file, or a part of it.

    Args:
        path: Address of the file.
        start: First byte.
        stop: Byte after the last one. The file may end before.

    Raises:
        FileNotFoundError: If there is no such file.
        RemoteError: If it cannot be read.
    """
    store, inside = filesystem(path)

    async def read() -> bytes:
        return await _range(store, inside, start, stop)

    return _one(path, read)


async def _range(store: Any, inside: str, start: int, stop: int | None, is_expected: IsExpected = any_version) -> bytes:
    if _is_http(store):
        return await read_range(store, inside, start, stop, is_expected)
    if store.async_impl:
        return bytes(await store._cat_file(inside, start=start or None, end=stop))
    return bytes(await _in_thread(store.cat_file, inside, start=start or None, end=stop))


def facts_of(paths: Sequence[str]) -> list[RemoteFacts | RemoteError]:
    """Look up size and mark of each file. A file without an answer gives its error."""

    async def read(path: str, store: Any, inside: str) -> RemoteFacts:
        info = await _info(store, inside)
        if info.get("size") is None:
            raise RemoteError(path, "the server gives no size", final=True)
        mark = str(next(filter(None, map(info.get, MARKS)), ""))
        return RemoteFacts(int(info["size"]), mark)

    return _all([(path, partial(read, path, *filesystem(path))) for path in paths], absent_is_answer=True)


def exist(paths: Sequence[str]) -> list[bool]:
    """Check for each address whether it is a file or a folder.

    Raises:
        UserError: If a server does not answer.
    """

    async def read(store: Any, inside: str) -> bool:
        if not _is_http(store):
            if store.async_impl:
                return bool(await store._exists(inside))
            return bool(await _in_thread(store.exists, inside))
        return bool(await _info(store, inside))

    answers = _all([(path, partial(read, *filesystem(path))) for path in paths], absent_is_answer=True)
    for answer in answers:
        if isinstance(answer, RemoteError) and answer.reason != NOT_FOUND:
            raise UserError(str(answer))
    return [answer is True for answer in answers]


def ask(path: str, question: Literal["isdir", "glob", "find"]) -> Any:
    """Query a remote file system.

    Args:
        path: Address or pattern.
        question: `isdir` whether it is a folder, `glob` for the files of a pattern, `find` for all files below a
            folder.

    Raises:
        UserError: If its server does not answer.
    """
    store, inside = filesystem(path)
    try:
        return getattr(store, question)(inside)
    except Exception as error:  # file systems raise errors of many types
        failure = _named(path, error)
        raise UserError(str(failure)) from failure


async def _info(store: Any, inside: str) -> dict[str, Any]:
    try:
        info = await (store._info(inside) if store.async_impl else _in_thread(store.info, inside))
    except FileNotFoundError:
        if not _is_http(store):  # fsspec's HTTP reports other errors as a missing file
            raise
        await read_range(store, inside, 0, 1)  # raises the actual error
        raise
    return cast("dict[str, Any]", info)


def _is_http(store: Any) -> bool:
    return "http" in store.protocol


def facts(path: str) -> RemoteFacts:
    """Look up size and mark of a file.

    Raises:
        RemoteError: If the server does not give them.
    """
    (answer,) = facts_of([path])
    if isinstance(answer, RemoteError):
        raise answer
    return answer


def _one(path: str, read: Callable[[], Awaitable[T]]) -> T:
    (answer,) = _all([(path, read)], absent_is_answer=True)
    if isinstance(answer, RemoteError):
        if answer.reason == NOT_FOUND:
            raise FileNotFoundError(2, "no such file", redacted(path)) from answer
        raise answer
    return answer


def _all(
    requests: Sequence[tuple[str, Callable[[], Awaitable[T]]]], *, absent_is_answer: bool = False
) -> list[T | RemoteError]:
    """Make all requests on fsspec's own event loop, and wait for them.

    Args:
        requests: Address of each request, for errors, and the request.
        absent_is_answer: Do not try a missing file again. Where a file was read before, its absence is a fault.
    """

    async def run() -> list[T | RemoteError]:
        limit = asyncio.Semaphore(CONNECTIONS)
        answers = (_tried(path, read, limit, absent_is_answer) for path, read in requests)
        return list(await asyncio.gather(*answers))

    return cast("list[T | RemoteError]", sync(get_loop(), run)) if requests else []


async def _tried(
    path: str, read: Callable[[], Awaitable[T]], limit: asyncio.Semaphore, absent_is_answer: bool
) -> T | RemoteError:
    """Try a request until it succeeds. The pauses after failures grow, and hold no connection."""
    failed_lately = time.monotonic() - _failed.get(path, float("-inf")) < AFTER_FAILURE
    for pause in (None,) if failed_lately else (*PAUSES, None):
        try:
            async with limit:
                data = await asyncio.wait_for(read(), TIMEOUT)
            _failed.pop(path, None)
            return data
        except Exception as error:  # file systems raise errors of many types
            failure = _named(path, error)
        if absent_is_answer and failure.reason == NOT_FOUND:
            return failure
        if pause is None or failure.final:
            break
        await asyncio.sleep(pause)
    _failed[path] = time.monotonic()
    return failure


def _named(path: str, error: Exception) -> RemoteError:
    if isinstance(error, RemoteError):
        return error
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return RemoteError(path, NOT_FOUND)
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteError(path, "no permission", final=True)
    if isinstance(error, TimeoutError):
        return RemoteError(path, "timeout")
    if isinstance(status, int):
        return RemoteError(path, f"status {status}")
    if isinstance(error, ValueError):  # aiohttp's errors about addresses are ValueErrors
        return RemoteError(path, "not a valid address", final=True)
    return RemoteError(path, f"no connection ({type(error).__name__})")


async def _in_thread(function: Callable[..., T], *args: Any, **named: Any) -> T:
    """Call a blocking file system function in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads(), partial(function, *args, **named))
