"""Byte ranges of remote files, the version of their content, and the error of a range that cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vfm.base import redacted

MARKS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "blob_id", "LastModified", "Last-Modified", "last_modified",
    "mtime", "updated", "created",
)  # fmt: skip
"""Names under which file systems report the version of a file's content, best first."""

IsExpected = Callable[[Mapping[str, str]], bool]
"""Checks by the headers of an answer whether a file is the expected version."""


class RemoteError(OSError):
    """A remote file or range that cannot be read, with its address without credentials and the reason."""

    def __init__(self, path: str, reason: str, *, final: bool = False) -> None:
        super().__init__(f"{redacted(path)}: {reason}")
        self.reason = reason
        self.final = final

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.reason, self.final)


def _restored(text: str, reason: str, final: bool) -> RemoteError:
    return RemoteError(text.removesuffix(f": {reason}"), reason, final=final)


@dataclass(frozen=True, order=True)
class Span:
    """Bytes `start` to `stop` of a file. For caches, `size` and `version` identify its content."""

    path: str
    start: int
    stop: int
    size: int = 0
    version: int = 0

    def is_version_of(self, headers: Mapping[str, str]) -> bool:
        """Check by the headers of an answer whether the file still has this content, as far as they have a mark."""
        versions = list(map(version_of, filter(None, map(headers.get, MARKS))))
        return not (self.version and versions) or self.version in versions


def version_of(mark: str) -> int:
    """Derive a number from a mark of a file's content, 0 without a mark."""
    return int.from_bytes(hashlib.blake2b(mark.encode(), digest_size=8).digest()) >> 1 if mark else 0


@dataclass(frozen=True)
class RemoteFacts:
    """Size of a remote file in bytes, and a mark of its content.

    The mark is its ETag, else the time of the last change, else "".
    """

    size: int
    mark: str

    @property
    def version(self) -> int:
        """A number derived from the mark, 0 without a mark."""
        return version_of(self.mark)


def any_version(headers: Mapping[str, str]) -> bool:
    """Accept any version of a file."""
    return True
