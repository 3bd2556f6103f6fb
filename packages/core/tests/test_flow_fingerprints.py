"""Fingerprints of outside files follow the content alone, and an unchanged file is not opened again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfm.base import UserError
from vfm.storage import fingerprints
from vfm.storage.fingerprints import (
    BLOCK,
    FINGERPRINTS_FILE,
    NUM_BLOCKS,
    FingerprintCache,
    cached_fingerprints,
    fingerprint,
)

OPENED: list[str] = []  # the names of the files that this process opens while the list is in use
WATCHED: list[Path] = []


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and WATCHED and isinstance(arguments[0], str | Path) and "r" in (arguments[1] or ""):
        path = Path(arguments[0])
        if path.is_relative_to(WATCHED[0]) and not path.name.startswith("."):
            OPENED.append(path.name)


sys.addaudithook(_note)  # a hook cannot be removed; without a watched folder it does nothing


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[str]]:
    """The names of the files in `tmp_path` that are opened to be read, as the interpreter reports them."""
    OPENED.clear()
    WATCHED.append(tmp_path)
    yield OPENED
    WATCHED.clear()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files that were written a minute ago, by the clock."""
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.tar").write_bytes(bytes([i]) * 1000)
    return sorted(map(str, folder.iterdir()))


def find(store: Path, paths: list[str]) -> list[str]:
    with cached_fingerprints(store) as known_fingerprint:
        return [known_fingerprint(path) for path in paths]


def test_second_plan_opens_no_file_and_finds_the_same(shards, tmp_path, opened):
    afresh = [fingerprint(path, FingerprintCache()) for path in shards]
    opened.clear()
    assert find(tmp_path / "store", shards) == afresh
    assert opened == ["0.tar", "1.tar", "2.tar"]
    opened.clear()
    assert find(tmp_path / "store", shards) == afresh
    assert opened == []


def test_folder_is_read_once_and_then_only_what_changed_in_it(shards, tmp_path, opened):
    folder = [str(tmp_path / "shards")]
    first = find(tmp_path / "store", folder)
    assert sorted(opened) == ["0.tar", "1.tar", "2.tar"]
    opened.clear()
    assert find(tmp_path / "store", folder) == first
    Path(shards[1]).write_bytes(b"x" * 1000)
    opened.clear()
    assert find(tmp_path / "store", folder) != first
    assert opened == ["1.tar"]
    Path(shards[1]).rename(tmp_path / "shards/other.tar")
    assert find(tmp_path / "store", folder) != first


def test_path_and_time_are_no_part_of_a_fingerprint(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = find(tmp_path / "store", [shards[0]])
    assert find(tmp_path / "store", ["shards/0.tar", "./shards/../shards/0.tar"]) == first * 2
    os.utime(shards[0], ns=(1, 1))
    assert find(tmp_path / "store", [shards[0]]) == first
    shutil.copytree("shards", "moved")
    assert find(tmp_path / "store", ["moved/0.tar"]) == first
    assert find(tmp_path / "store", ["moved"]) == find(tmp_path / "store", ["shards/"])


def test_every_byte_of_a_file_counts_up_to_the_limit_and_sampled_blocks_above_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE_FILE", 4 * BLOCK * NUM_BLOCKS)
    file = tmp_path / "big.tar"

    def changes(size: int, place: int) -> bool:
        with file.open("wb") as stream:
            stream.truncate(size)
        before = fingerprint(str(file), FingerprintCache())
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        return fingerprint(str(file), FingerprintCache()) != before

    whole, above = 4 * BLOCK * NUM_BLOCKS, 4 * BLOCK * NUM_BLOCKS + 1
    assert all(changes(whole, place) for place in (0, BLOCK, 2 * BLOCK, whole - 1))
    assert [changes(above, place) for place in (0, BLOCK - 1, 2 * BLOCK, above - 1)] == [True, True, False, True]
    sizes = [fingerprint(str(file), FingerprintCache())]
    os.truncate(file, above + 1)
    assert fingerprint(str(file), FingerprintCache()) not in sizes


def test_changed_file_alone_is_read_again(shards, tmp_path, opened):
    first = find(tmp_path / "store", shards)
    Path(shards[1]).write_bytes(b"x" * 1000)
    opened.clear()
    second = find(tmp_path / "store", shards)
    assert opened == ["1.tar"]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]


def test_changed_file_with_the_same_size_and_time_has_another_fingerprint(shards, tmp_path):
    first = find(tmp_path / "store", shards)
    before = Path(shards[0]).stat()
    other = tmp_path / "other.tar"
    other.write_bytes(b"x" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(shards[0])
    assert find(tmp_path / "store", shards)[0] != first[0]


def test_file_that_was_just_written_is_not_remembered(tmp_path, opened):
    file = tmp_path / "new.txt"
    file.write_text("one")
    find(tmp_path / "store", [str(file)])
    find(tmp_path / "store", [str(file)])
    assert opened == ["new.txt"] * 2
    assert not (tmp_path / "store").exists()


OLD = '{"PLACE": [[1, 2, 3], "0"]}'  # of an older version, without a hash of its own


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', '{"entries": {"a": [1, 2]}}', "\0\xff", OLD])
def test_memory_that_is_torn_costs_only_time(text, shards, tmp_path, opened):
    store = tmp_path / "store"
    store.mkdir()
    (store / FINGERPRINTS_FILE).write_text(text.replace("PLACE", shards[0]))
    assert find(store, shards) == [fingerprint(path, FingerprintCache()) for path in shards]
    opened.clear()
    find(store, shards)
    assert opened == []
    assert set(shards) <= set(json.loads((store / FINGERPRINTS_FILE).read_text())["entries"])
    assert [path.name for path in store.iterdir()] == [FINGERPRINTS_FILE]


def test_store_that_cannot_be_written_costs_only_time(shards, tmp_path):
    (tmp_path / "file").write_text("")
    assert find(tmp_path / "file" / "store", shards) == [fingerprint(path, FingerprintCache()) for path in shards]


def test_what_was_read_before_a_missing_file_is_remembered(shards, tmp_path, opened):
    with pytest.raises(UserError, match=r"3\.tar: no such file or folder"):
        find(tmp_path / "store", [*shards, f"{shards[0][:-5]}3.tar"])
    opened.clear()
    find(tmp_path / "store", shards)
    assert opened == []


def test_link_that_leads_elsewhere_now_is_another_file(shards, tmp_path):
    link = tmp_path / "link.tar"
    link.symlink_to(shards[0])
    first = find(tmp_path / "store", [str(link)])
    link.unlink()
    link.symlink_to(shards[1])
    assert find(tmp_path / "store", [str(link)]) == find(tmp_path / "store", shards[1:2]) != first


def test_reading_of_many_bytes_is_announced_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "MUCH", 3000)
    lines: list[str] = []
    for _ in range(2):
        with cached_fingerprints(tmp_path / "store", lines.append) as known_fingerprint:
            known_fingerprint(str(tmp_path / "shards"))
    assert lines == [f"reading 0.0 GB in {tmp_path / 'shards'}, once, to identify the data by content"]


def test_a_path_with_a_null_character_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"expected a path, got 'a\\x00b', which no file can have"):
        fingerprint("a\0b", FingerprintCache())
