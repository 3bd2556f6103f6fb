"""No path makes `plan` or `run` hang or take all memory: each case ends in seconds, most of them with a clear line."""

import gzip
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_samples import encoded, members
from vfm.base import UserError
from vfm.data import write_tar
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths

MEMORY = 6 << 30  # of addresses, most of which are never used
SECONDS = 1800


def vfm(command: str, folder: Path, path: str, kind: str = "data.pairs", **more: str) -> tuple[int, str]:
    """Run `vfm plan` or `run` in a process of limited memory and time, and return its exit code and its errors."""
    fields = "".join(f", {name}: {value}" for name, value in more.items())
    (folder / "r.yaml").write_text(f"stages:\n  - {{kind: {kind}, name: d, path: {path!r}{fields}}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "vfm", command, "r.yaml", "--store", "store"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    return done.returncode, done.stderr


def refused(
    folder: Path, path: str, message: str, kind: str = "data.pairs", command: str = "plan", **more: str
) -> None:
    code, errors = vfm(command, folder, path, kind, **more)
    (line,) = errors.splitlines()
    assert code == 2
    assert re.search(message, line), line


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / f"{n}.txt").write_text(f"caption {n}")
    return folder


def test_links_of_a_folder_to_itself_are_not_followed(tmp_path):
    folder = make_folder(tmp_path / "f")
    for name in ("again", "and-again"):
        (folder / name).symlink_to(folder)
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe.png")
    assert vfm("plan", tmp_path, str(folder)) == (0, "")
    assert vfm("plan", tmp_path, str(folder), "data.images") == (0, "")
    assert list(files.walk(str(folder))) == sorted(
        [f"{n}.{end}" for n in range(3) for end in ("png", "txt")] + ["circle"]
    )


def test_the_root_of_the_file_system_is_refused(tmp_path):
    for kind in ("data.pairs", "data.images"):
        refused(tmp_path, "/", "/: expected a folder of data, got the root of the file system", kind)
    (tmp_path / "link").symlink_to("/")
    refused(tmp_path, "link", "link: expected a folder of data, got the root of the file system")


@pytest.mark.parametrize("name", ["x.tar", "x.csv", "x.jsonl", "x.parquet", "x.txt"])
def test_a_fifo_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path, name, rf"{name}: expected a regular file or a folder, got a FIFO")
    with pytest.raises(UserError, match="expected a regular file, got a FIFO"):
        files.size_and_time(str(tmp_path / name))
    for read in (files.read_bytes, files.open_binary):
        with pytest.raises(OSError, match="expected a regular file, got a FIFO"):
            read(str(tmp_path / name))


def test_a_fifo_of_captions_alone_or_choices_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    refused(tmp_path, "x.jsonl", "expected a regular file or a folder, got a FIFO", images="false")
    refused(tmp_path, "x.jsonl", "expected a regular file or a folder, got a FIFO", "data.choices")


def test_a_device_is_refused(tmp_path):
    refused(tmp_path, "/dev/zero", "/dev/zero: expected a regular file or a folder, got a device")


def test_a_fifo_in_a_path_column_or_beside_a_tar_is_no_obstacle(tmp_path):
    folder = make_folder(tmp_path / "f")
    os.mkfifo(folder / "pipe")
    (folder / "t.csv").write_text("image,caption\npipe,x\n0.png,y\n")
    code, _ = vfm("run", tmp_path, f"{folder}/t.csv", max_bad_fraction="0.9")
    assert code == 0
    write_tar(tmp_path / "x.tar", [("a", members(0))])
    os.mkfifo(tmp_path / "x_stats.json")
    code, _ = vfm("run", tmp_path, "x.tar")
    assert code == 0


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("{0..1}" * 30 + ".tar", "1,073,741,824"),
        ("{0..1073741823}.tar", "1,073,741,824"),
        ("{a,b}" * 400 + ".tar", ""),
        ("{0..999}{0..999}{0..9}.tar", "10,000,000"),
    ],
)
def test_brace_patterns_are_bounded(tmp_path, pattern, count):
    refused(tmp_path, pattern, rf"expected a pattern of at most 1,000,000 names, got {count}")


def test_patterns_joined_to_too_many_names_are_refused():
    with pytest.raises(UserError, match="expected at most 1,000,000 files, got more"):
        expand_paths(["{0..599999}.tar", "{0..599999}.tar"])


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv.gz", "x.jsonl.gz"])
@pytest.mark.parametrize("images", ["true", "false"])
def test_a_line_of_three_gigabytes_is_refused(tmp_path, name, images):
    (tmp_path / name).write_bytes(gzip.compress(b"x" * (64 << 20), 1) * 48)
    message = rf"{name}: line 1 is longer than 16 MiB; expected one row per line"
    refused(tmp_path, name, message, command="run", images=images)


def test_a_line_of_three_gigabytes_within_a_table_is_refused(tmp_path):
    head = b"image,caption\n" + b"no.png,x\n" * 5 + b'a.png,"'
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(head) + gzip.compress(b"x" * (64 << 20), 1) * 48)
    refused(tmp_path, "x.csv.gz", r"x.csv.gz: line 7 is longer than 16 MiB", command="run")


def test_a_quotation_mark_that_is_never_closed_is_one_bad_row(tmp_path):
    folder = make_folder(tmp_path / "f")
    lines = ['0.png,"caption', *["1.png,word"] * 100_000]
    (folder / "t.csv").write_text("\n".join(["image,caption", *lines]))
    code, _ = vfm("run", tmp_path, f"{folder}/t.csv", max_bad_fraction="0.9")
    assert code == 0
