"""The commit in a manifest is that of the whole work tree, with a mark if a tracked file differs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vfm.flow.records import manifest

pytestmark = pytest.mark.needs("git")


def git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_whole_work_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other = tmp_path / "flow/manifest.py", tmp_path / "other.py"
    source.parent.mkdir()
    for file in (source, other):
        file.write_text("one")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(manifest, "__file__", str(source))
    assert manifest._commit() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    other.write_text("two")
    assert manifest._commit() == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    git(tmp_path, "commit", "-q", "-a", "-m", "second")
    assert manifest._commit() == git(tmp_path, "rev-parse", "HEAD")
