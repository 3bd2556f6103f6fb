"""Filter by the user's own lists of hosts, words and uids. Each process reads a list once."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import UserError
from vfm_curation.filters.list_filters import BlockedImages, BlockedUrls, BlockedWords, Uids
from vfm_curation.uids import are_listed, read_uids

Bools = NDArray[np.bool_]
# Scripts that are written without spaces between words: CJK and kana, Thai, Lao, Tibetan, Burmese, Khmer.
NO_SPACES = re.compile("[\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff]")


def read_list(path: str) -> list[str]:
    """Read the items of a list.

    They are its lines without comments and empty ones.

    Raises:
        UserError: If the file is missing, is not text, or has no items.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8: {error}") from None
    items = [line for line in lines if line and not line.startswith("#")]
    if not items:
        raise UserError(f"{path}: expected one item a line, got an empty list")
    return items


def url_passes(config: BlockedUrls, table: pa.Table) -> Bools:
    """Check the column `address` against the blocked hosts and folders."""
    hosts, folders = _blocked_urls(config.path)
    urls = table["address"].to_pylist()
    return np.array([not (url and _is_blocked(url, hosts, folders)) for url in urls], np.bool_)


def look_passes(config: BlockedImages, table: pa.Table) -> Bools:
    """Compare the column `pdq` with the blocked hashes."""
    blocked = _blocked_hashes(config.path)
    passes = np.ones(len(table), dtype=np.bool_)
    for place, value in enumerate(table["pdq"].to_pylist()):
        if value is not None:
            distances = np.bitwise_count(blocked ^ np.frombuffer(value, dtype=np.uint64)).sum(axis=1)
            passes[place] = distances.min() > config.max_distance
    return passes


@functools.lru_cache(maxsize=4)
def _blocked_hashes(path: str) -> NDArray[np.uint64]:
    """Read a list of PDQ hashes as four numbers each."""
    items = [item.split(",")[0].strip() for item in read_list(path)]
    wrong = [item for item in items if not re.fullmatch("[0-9a-fA-F]{64}", item)]
    if wrong:
        raise UserError(f"{path}: expected PDQ hashes of 64 hexadecimal digits, got {wrong[0][:80]!r}")
    return np.frombuffer(bytes.fromhex("".join(items)), dtype=np.uint64).reshape(-1, 4)


@functools.lru_cache(maxsize=4)
def _blocked_urls(path: str) -> tuple[frozenset[str], dict[str, tuple[str, ...]]]:
    """Read the blocked hosts, and the blocked beginnings of paths by host."""
    hosts = set[str]()
    folders = dict[str, list[str]]()
    for line in read_list(path):
        first, *others = line.split("#")[0].split()
        for word in others or [first]:  # a line of a hosts file is an address and one or more hosts
            host, slash, folder = (word.partition("://")[2] or word).partition("/")
            # Some lists write a domain and its subdomains as `*.example.com`.
            host = host.lower().lstrip("*.")
            if folder:
                folders.setdefault(host, []).append(slash + folder)
            else:
                hosts.add(host)
    return frozenset(hosts), {host: tuple(beginnings) for host, beginnings in folders.items()}


def _is_blocked(url: str, hosts: frozenset[str], folders: dict[str, tuple[str, ...]]) -> bool:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:  # not a URL
        return False
    return any(name in hosts or parts.path.startswith(folders.get(name, ("\0",))) for name in _parents(host))


def _parents(host: str) -> Iterator[str]:
    """Yield a host and the domains that contain it, such as a.b.org, b.org and org."""
    yield host
    while "." in host:
        host = host.partition(".")[2]
        yield host


def word_passes(config: BlockedWords, table: pa.Table) -> Bools:
    """Check the column `caption` against the blocked words."""
    phrases, parts, longest = _blocked_words(config.path)

    def passes(text: str) -> bool:
        text = text.casefold()
        blocked_parts = {part for part in parts if part in text}
        return len(blocked_parts | runs_in(words_of(text), phrases, longest)) <= config.max_count

    return np.array([passes(text) for text in table["caption"].to_pylist()], dtype=np.bool_)


@functools.lru_cache(maxsize=4)
def _blocked_words(path: str) -> tuple[frozenset[str], tuple[str, ...], int]:
    """Read the phrases of words, the items that match anywhere, and the number of words of the longest phrase."""
    phrases = set()
    anywhere = []
    longest = 0
    for item in map(str.casefold, read_list(path)):
        words = words_of(item)
        if NO_SPACES.search(item):
            anywhere.append(item)
        elif words:
            phrases.add(" ".join(words))
            longest = max(longest, len(words))
    return frozenset(phrases), tuple(anywhere), longest


def uid_passes(config: Uids, table: pa.Table) -> Bools:
    """Check the column `uid` against the list."""
    return are_listed(table["uid"], read_uids(config.path))


def words_of(text: str) -> list[str]:
    """Find the runs of letters and digits of a text. An apostrophe within a word belongs to it."""
    return re.findall(r"\w+(?:['’]\w+)*", text)


def runs_in(words: list[str], phrases: frozenset[str], longest: int) -> set[str]:
    """Find the phrases in a text.

    Args:
        words: Words of the text.
        phrases: Phrases to find.
        longest: Words of the longest phrase.
    """
    matched_phrases: set[str] = set()
    for length in range(1, longest + 1):
        runs = (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
        matched_phrases.update(run for run in runs if run in phrases)
    return matched_phrases
