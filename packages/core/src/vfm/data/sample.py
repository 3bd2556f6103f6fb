"""One sample of a data set, and what is wrong with one that cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, get_args

Reason = Literal[
    "truncated_shard",
    "missing_image",
    "missing_caption",
    "missing_label",
    "unknown_label",
    "caption_too_long",
    "wrong_encoding",
    "broken_json",
    "unsafe_path",
    "unreadable_image",
    "image_too_large",
    "unreadable_row",
]
REASONS: tuple[str, ...] = get_args(Reason)


class BadSample(Exception):  # noqa: N818 (a fact about the data, counted and skipped, not a failure of the program)
    """A sample that cannot be used: the reason, one of a fixed set so that it can be counted, and where it lies."""

    def __init__(self, reason: Reason, where: str) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Sample:
    """An image as it lies on disk (encoded), its texts by language, its class, address and labels where it has them."""

    key: str
    uid: str
    image: bytes
    texts: dict[str, list[str]] = field(default_factory=dict)
    label: int | None = None
    url: str | None = None
    labels: tuple[int, ...] | None = None


def given_uid(value: object) -> str | None:
    """The uid as data give it, a text or a whole number; None where they give none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) or None if whole or isinstance(value, str) else None


def uid_of(key: str) -> str:
    """32 hex digits that name a sample by its key, so that they outlive re-sharding."""
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
