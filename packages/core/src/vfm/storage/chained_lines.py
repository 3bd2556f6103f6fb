"""Lines of JSON in a hash chain. Each has its number, and a hash of itself and of all lines before it.

    {"t": 1.5, "type": "log", ..., "chain": [17, "9f2c..."], "crc32": "0123abcd"}

A line that is changed, removed, inserted or moved breaks the chain. The number and hash of a line stand for the whole
file up to this line. Lines of older versions have only a checksum, or nothing. They come first, and the chain
begins with a hash of their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

CHAIN_KEY, CRC_KEY = "chain", "crc32"  # last keys of a line
TAIL = 1 << 16  # bytes read at the end of a file at first, to find its last line
_STAMP = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n?\Z')
_DAMAGED_STAMP = re.compile(rb', "(crc32": "[^"]{8}|[^"]{5}": "[0-9a-f]{8})"\}\n?\Z')
_CHAIN = re.compile(rb', "chain": \[(?P<number>\d{1,15}), "(?P<hash>[0-9a-f]{64})"\], "crc32": "[0-9a-f]{8}"\}\n\Z')

End = tuple[int, str]
"""The number of a line, from 1, and the hash of the chain up to it."""

START: End = (0, hashlib.sha256().hexdigest())


def chained(line: bytes, before: End) -> tuple[bytes, End]:
    """Append a JSON object to a chain.

    Args:
        line: The object on one line, without a newline.
        before: The end of the chain so far.

    Returns:
        The line for the file, with a newline, and the new end of the chain.
    """
    number = before[0] + 1
    start = b'%s, "%s": [%d, "' % (line[:-1], CHAIN_KEY.encode(), number)
    digest = _link(before[1], start)
    body = b'%s%s"]' % (start, digest.encode())
    return b'%s, "%s": "%08x"}\n' % (body, CRC_KEY.encode(), zlib.crc32(body + b"}")), (number, digest)


def end_of_chain(file: Path) -> End:
    """Find the end of the chain in a file. A missing file is an empty one."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return START
    try:
        return end_of_open(descriptor)
    finally:
        os.close(descriptor)


def end_of_open(descriptor: int) -> End:
    """Find the end of the chain in an open file. If the last line has none, a chain begins after all lines."""
    size = os.fstat(descriptor).st_size
    count = TAIL
    while True:
        tail = os.pread(descriptor, min(count, size), size - min(count, size))
        line = tail[tail[:-1].rfind(b"\n") + 1 :]
        if len(line) < len(tail) or count >= size:
            break
        count *= 2
    match = _CHAIN.search(line)
    if match:
        return int(match["number"]), match["hash"].decode()
    whole = os.pread(descriptor, size, 0)
    return whole.count(b"\n"), hashlib.sha256(whole).hexdigest()


def broken_lines(lines: Iterable[bytes], mark: Sequence[object] = START) -> tuple[list[int], bool]:
    """Check the lines of a file.

    Args:
        lines: The lines, with their newlines. The first may be of an older version, without checksums.
        mark: A number and hash that the chain must have had at some line.

    Returns:
        The numbers of the lines that are not as they were written, or do not follow the line that they were written
        after, from 1. Then whether the chain has the mark.
    """
    broken: list[int] = []
    whole = hashlib.sha256()
    end = START
    has_chain = False
    has_mark = list(mark) == list(START)
    for number, line in enumerate(lines, start=1):
        whole.update(line)
        match = _CHAIN.search(line)
        if match:
            good = _is_stamped(line) and (end[0] + 1, _link(end[1], line[: match.start("hash")])) == _end(match)
            end = _end(match)
            has_chain = True
        else:
            good = not has_chain and (_is_stamped(line) or _is_unstamped(line))
            end = number, whole.hexdigest()
        if not good:
            broken.append(number)
        has_mark |= list(mark) == list(end)
    return broken, has_mark


def _end(match: re.Match[bytes]) -> End:
    return int(match["number"]), match["hash"].decode()


def _link(before: str, start: bytes) -> str:
    return hashlib.sha256(before.encode() + start).hexdigest()


def _is_stamped(line: bytes) -> bool:
    """Compare the CRC-32 of a line."""
    stamp = _STAMP.search(line)
    if stamp is None or not line.endswith(b"\n"):
        return False
    return b"%08x" % zlib.crc32(line[: stamp.start()] + b"}") == stamp[1]


def _is_unstamped(line: bytes) -> bool:
    """Check whether a line is JSON of a version that wrote no checksums."""
    if _STAMP.search(line) or _DAMAGED_STAMP.search(line):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
