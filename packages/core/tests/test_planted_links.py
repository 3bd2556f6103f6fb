"""A link that somebody plants in a shared folder, under the name of a file that will be written, is not followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vfm.eval.encode.embeddings import NpyWriter, ParquetWriter
from vfm.flow.records.manifest import EventNotes
from vfm.flow.records.runs import _link, _write
from vfm.interfaces import Event
from vfm.report.result_files import write_csv
from vfm.storage.fingerprints import FINGERPRINTS_FILE, FingerprintCache, fingerprint
from vfm.storage.publishing import new_file, write_file

PID = os.getpid()


def remember(folder: Path) -> None:
    (folder / "data.bin").write_bytes(b"x")
    os.utime(folder / "data.bin", ns=(0, 0))
    memory = FingerprintCache(folder)
    fingerprint(str(folder / "data.bin"), memory)
    memory.changed.add(FINGERPRINTS_FILE)
    memory.save()


def note(folder: Path) -> None:
    EventNotes(folder / "notes.json").add(Event("warning", "s", {"message": "m"}))


def embed(writer: type[NpyWriter] | type[ParquetWriter], folder: Path, *rest: str) -> None:
    with writer(folder / "e.npy", *rest) as stream:
        stream.write(["a"], [None], np.ones((1, 2), np.float32))


# What writes, and the names under which it wrote until the file was whole: known to anybody who sees the folder.
WRITERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "write_file": (lambda folder: write_file(folder / "a.json", b"ours"), [f"a.json.{PID}.part"]),
    "fingerprints": (remember, [f"{FINGERPRINTS_FILE}.{PID}"]),
    "run": (lambda folder: _write(folder / "run.json", b"ours"), [f".run.json.{PID}"]),
    "notes": (note, ["notes.part"]),
    "csv": (lambda folder: write_csv([{"metrics": {}, "ci95": {}}], folder / "all.csv"), [".all.csv.part"]),
    "npy": (lambda folder: embed(NpyWriter, folder), ["e.npy.part", "e.keys.txt.part"]),
    "parquet": (lambda folder: embed(ParquetWriter, folder, "model"), ["e.npy.part"]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_planted_link_is_not_followed(name: str, tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "store"
    folder.mkdir()
    theirs.write_text("keep")
    write, names = WRITERS[name]
    for planted in names:
        (folder / planted).symlink_to(theirs)
    write(folder)
    assert theirs.read_text() == "keep"
    assert any(path.is_file() and not path.is_symlink() for path in folder.iterdir())


def test_a_link_under_the_name_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("keep")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    write_file(tmp_path / "a", b"ours")
    assert (tmp_path / "theirs").read_text() == "keep"
    assert not (tmp_path / "a").is_symlink()
    _link(tmp_path / "a", Path("theirs"))
    assert (tmp_path / "a").readlink() == Path("theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "theirs"]


def test_after_an_error_the_old_file_stays_and_no_part(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError), new_file(tmp_path / "a") as stream:
        stream.writelines([b"half", "text"])  # type: ignore[list-item]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"ours")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
