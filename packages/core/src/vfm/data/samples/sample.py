"""A sample of a dataset, and the reasons why a sample cannot be used."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from vfm.base import UserError

Reason = Literal[
    "truncated_shard",
    "damaged_header",
    "sparse_member",
    "duplicate_key",
    "unknown_extension",
    "linked_folder",
    "missing_image",
    "missing_caption",
    "missing_label",
    "missing_value",
    "unknown_label",
    "caption_too_long",
    "wrong_encoding",
    "nul_in_caption",
    "broken_json",
    "unsafe_path",
    "unreadable_image",
    "image_too_large",
    "wrong_size",
    "no_objects",
    "missing_video",
    "unreadable_video",
    "no_video_stream",
    "no_frames",
    "truncated_video",
    "unreadable_row",
    "unreachable",
]
UNREACHABLE: Reason = "unreachable"
# Endings of an error about samples that a setting would mend.
CURES: dict[str, str] = {
    "unsafe_path": "; paths must be relative to image_root; absolute ones and addresses need image_root: /"
    " (--data-option image_root=/)",
    "wrong_encoding": "; save the file in UTF-8 (iconv -f latin1 -t utf-8 FILE > NEW)",
    "linked_folder": "; links to folders are not followed: give the folder itself, or copy the data with cp -rL",
}
REASONS: tuple[str, ...] = get_args(Reason)


class BadSample(Exception):  # noqa: N818 (a property of the data, counted and skipped, not an error of the program)
    """A sample that cannot be used, with its address and a reason from a fixed set, so that reasons can be counted."""

    def __init__(self, reason: Reason, where: str) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def raise_if_unreachable(bad: BadSample) -> None:
    """Raise the error of a remote sample whose bytes did not come, for a reader of whole shards.

    Which samples come may differ the next time, so that a shard is read whole or not at all.

    Raises:
        UserError: If the sample is unreachable. The cause of `bad` names the file and the reason.
    """
    if bad.reason == UNREACHABLE:
        raise UserError(str(bad.__cause__ or bad)) from None


class HasReason(Protocol):
    """A problem with a reason."""

    @property
    def reason(self) -> str:
        """Why something cannot be used."""
        ...


def count_reasons(problems: Iterable[HasReason]) -> Counter[str]:
    """Count problems by reason."""
    return Counter(problem.reason for problem in problems)


@dataclass(frozen=True)
class Sample:
    """An encoded image as stored on disk, its texts by language, and its class, address and labels if it has them.

    `columns` has the values that the dataset's stage names in `columns`, such as a weight and a group.
    """

    key: str
    uid: str
    image: bytes
    texts: dict[str, list[str]] = field(default_factory=dict)
    label: int | None = None
    url: str | None = None
    labels: tuple[int, ...] | None = None
    columns: Mapping[str, str | float] = field(default_factory=dict)


def uid_from(value: object, key: str) -> str:
    """Take the uid from the data, or else derive it from the key."""
    return given_uid(value) or uid_of(key)


def given_uid(value: object) -> str | None:
    """Convert a uid in the data to text.

    It may be a text, an integer or bytes. Bytes become hexadecimal digits, so 16 bytes equal the 32 digits that other
    tables have. Data without a uid give None.
    """
    if isinstance(value, uuid.UUID):
        value = value.bytes
    if isinstance(value, bytes):
        return value.hex() or None
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer or isinstance(value, str):
        return str(value) or None
    return None


def uid_of(key: str) -> str:
    """Hash a sample's key to a uid of 32 hex digits.

    The uid stays the same when the data are sharded again. If keys repeat in a dataset, a key begins with the name of
    its shard (`DatasetSpec.keys_repeat`).
    """
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
