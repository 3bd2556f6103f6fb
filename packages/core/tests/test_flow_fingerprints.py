"""Fingerprints of outside files: the same as without a memory, and an unchanged file is not opened again."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from vfm.config import UserError
from vfm.flow import fingerprints
from vfm.flow.fingerprints import FINGERPRINTS_FILE, MEBIBYTE, cached_fingerprints, fingerprint


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened to be read."""
    names: list[str] = []

    def count(file, *rest, **named):
        names.append(Path(file).name)
        return builtins.open(file, *rest, **named)

    monkeypatch.setattr(fingerprints, "open", count, raising=False)
    return names


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files, the clock being a minute past their making."""
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
    afresh = [fingerprint(path, {}) for path in shards]
    opened.clear()
    assert find(tmp_path / "store", shards) == afresh
    assert opened == ["0.tar", "1.tar", "2.tar"]
    opened.clear()
    assert find(tmp_path / "store", shards) == afresh
    assert opened == []


def test_fingerprint_is_of_path_size_time_and_both_ends(tmp_path):
    file = tmp_path / "big.tar"
    file.write_bytes(b"a" * MEBIBYTE + b"middle" + b"z" * MEBIBYTE)
    status = file.stat()
    hashed = f"{file} {status.st_size} {status.st_mtime_ns}".encode() + b"a" * MEBIBYTE + b"z" * MEBIBYTE
    assert fingerprint(str(file), {}) == hashlib.sha256(hashed).hexdigest()[:16]


def test_changed_file_alone_is_read_again(shards, tmp_path, opened):
    first = find(tmp_path / "store", shards)
    opened.clear()
    Path(shards[1]).write_bytes(b"x" * 1000)
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


def test_file_that_was_just_written_is_not_cached_fingerprints(tmp_path, opened):
    file = tmp_path / "new.txt"
    file.write_text("one")
    find(tmp_path / "store", [str(file)])
    find(tmp_path / "store", [str(file)])
    assert opened == ["new.txt"] * 2
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', '{"a": [1, 2]}', "\0\xff", '{"PLACE": [[1], "0"]}'])
def test_memory_that_is_torn_costs_only_time(text, shards, tmp_path, opened):
    store = tmp_path / "store"
    store.mkdir()
    (store / FINGERPRINTS_FILE).write_text(text.replace("PLACE", shards[0]))
    assert find(store, shards) == [fingerprint(path, {}) for path in shards]
    opened.clear()
    find(store, shards)
    assert opened == []
    assert set(shards) <= set(json.loads((store / FINGERPRINTS_FILE).read_text()))
    assert [path.name for path in store.iterdir()] == [FINGERPRINTS_FILE]


def test_store_that_cannot_be_written_costs_only_time(shards, tmp_path):
    (tmp_path / "file").write_text("")
    assert find(tmp_path / "file" / "store", shards) == [fingerprint(path, {}) for path in shards]


def test_what_was_read_before_a_missing_file_is_cached_fingerprints(shards, tmp_path, opened):
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
