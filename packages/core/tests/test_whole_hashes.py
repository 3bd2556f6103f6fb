"""A large file that is rewritten in place, between the blocks of its fingerprint, is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli_world import run_here, toys
from vfm.base import UserError
from vfm.flow.records import input_changes
from vfm.storage import fingerprints, whole_hashes
from vfm.storage.fingerprints import BLOCK, NUM_BLOCKS
from vfm.storage.whole_hashes import hashed_meanwhile, read_hashes

__all__ = ["toys"]
LARGE = BLOCK * NUM_BLOCKS


@pytest.fixture
def words(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that reads a file of three times the blocks of its fingerprint."""
    for module in (fingerprints, input_changes, whole_hashes):
        monkeypatch.setattr(module, "WHOLE_FILE", LARGE)
    Path("words.txt").write_bytes(b"a" * 3 * LARGE)
    Path("r.yaml").write_text("stages:\n  - {kind: toy.read, name: w, path: words.txt}\n")
    return Path("words.txt")


def rewrite(file: Path, letter: bytes) -> None:
    """Rewrite a byte that the fingerprint of the blocks leaves out, with the size and time of before."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(2 * BLOCK)
        stream.write(letter)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_large_file_that_was_rewritten_in_place_is_read_again(words: Path) -> None:
    assert run_here("run", "r.yaml").code == 0
    assert run_here("verify", "--inputs").code == 0
    rewrite(words, b"b")
    assert run_here("run", "r.yaml").out.count("cached") == 0
    done = run_here("verify", "--inputs")
    assert done.code == 2
    assert done.err.count("words.txt: changed") == 1  # for the first artifact, and not for the second
    os.utime(words)
    assert run_here("run", "r.yaml").out.count("cached") == 1  # other times alone change nothing
    rewrite(words, b"a")
    assert run_here("plan", "r.yaml").out.count("cached") == 1


def test_hashes_are_kept_when_the_stage_has_ended_well(words: Path) -> None:
    store, names = Path("store"), {str(words): "f" * 32, "missing.tar": "e" * 32}
    store.mkdir()
    with pytest.raises(UserError), hashed_meanwhile(store, names):
        raise UserError("a mistake")
    assert read_hashes(store) == {}
    with hashed_meanwhile(store, names):
        pass
    assert list(read_hashes(store)) == ["f" * 32]
