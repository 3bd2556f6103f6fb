"""Files that `make fuzz-coverage` has kept, because a reader ended by an error of its own, are read or refused now."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.coverage import CORPUS, ENDINGS, READERS, read_or_refuse, seeds


@pytest.mark.parametrize("name", READERS)
def test_kept_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    for file in sorted((CORPUS / name).glob("*")):
        copy = tmp_path / f"{file.name}.{ENDINGS[name]}"
        copy.write_bytes(file.read_bytes())
        read_or_refuse(name, copy)


@pytest.mark.parametrize("name", READERS)
def test_the_first_files_are_good(tmp_path: Path, name: str) -> None:
    seeds(name, tmp_path)
    READERS[name]((tmp_path / "good").rename(tmp_path / f"x.{ENDINGS[name]}"))
