"""Read bytes over HTTP from a server that may be hostile, no more than requested and not too slowly."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from vfm.storage.remote_spans import IsExpected, RemoteError, any_version

MOST = 1 << 30  # bytes of a file that is read as a whole
CHUNK_TIMEOUT = 15.0  # seconds without any bytes
LEAST_RATE, MEASURED_AFTER = 64_000, 10.0  # bytes per second, and the seconds from which the rate counts
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


async def read_range(
    store: Any, url: str, start: int, stop: int | None, is_expected: IsExpected = any_version
) -> bytes:
    """Read the bytes `start` to `stop`, or to the end of a file of at most `MOST` bytes.

    The body is never decompressed, since a small one may expand without limit.

    Args:
        store: fsspec's file system for HTTP.
        url: The address.
        start: First byte.
        stop: The byte after the last one. By default, the file is read to its end.
        is_expected: Checks by the headers whether the file still is the expected version.

    Raises:
        RemoteError: If the server ignores the range, sends other or more bytes, another version of the file, or a
            compressed body, or is too slow.
        TimeoutError: If no bytes arrive for a while.
    """
    settings = dict(store.kwargs)
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    session = await store.set_session()
    async with session.get(store.encode_url(url), headers=headers, **settings) as response:
        store._raise_not_found_for_status(response, url)
        problem = _problem(response, start, stop)
        if not problem and not is_expected(response.headers):
            problem = "the file has changed since it was indexed"
        data = b""
        if not problem:
            limit = MOST if stop is None else stop - start
            data, problem = await _bounded(response, limit)
        if problem:
            raise RemoteError(url, problem + _redirected(response), final=True)
        return data


def _problem(response: Any, start: int, stop: int | None) -> str:
    """Describe what is wrong with the head of an answer; empty if nothing is."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        return f"expected plain bytes, got Content-Encoding {encoding[:40]}"
    if "Range" not in response.request_info.headers:
        return ""
    length = response.headers.get("Content-Length")
    if response.status == 200 and start == 0 and stop is not None and length == str(stop):
        return ""  # the whole file was requested
    if response.status != 206:
        return "the server does not support ranges"
    given = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    # Where the file ends before `stop`, the answer is shorter, which the caller notices.
    if not given or int(given[1]) != start or (stop is not None and int(given[2]) >= stop):
        return f"expected bytes {start} to {stop}, got {response.headers.get('Content-Range', '')[:60]!r}"
    return ""


async def _bounded(response: Any, limit: int) -> tuple[bytes, str]:
    """Read at most `limit` bytes, and describe what is wrong with the body; empty if nothing is."""
    parts: list[bytes] = []
    size = 0
    now = asyncio.get_running_loop().time
    begun = now()
    async with asyncio.timeout(CHUNK_TIMEOUT) as patience:  # wait_for would create a task for each chunk
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                return b"", f"expected at most {limit:,} bytes, got more"
            parts.append(chunk)
            seconds = now() - begun
            if seconds > MEASURED_AFTER and size < LEAST_RATE * seconds:
                return b"", f"too slow: {size:,} bytes in {seconds:.0f} s"
            patience.reschedule(now() + CHUNK_TIMEOUT)
    return b"".join(parts), ""


def _redirected(response: Any) -> str:
    """Name the host that answered, if it is another one than the address names."""
    if not response.history or response.url.host == response.history[0].url.host:
        return ""
    return f" (redirected to {response.url.host})"
