"""Hostile models and files: no code of theirs runs, and what is refused is refused in one line."""

from __future__ import annotations

import io
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hostile
from hostile import CASES, Case, load_with_vfm, make_case, make_layouts
from hostile_more import MORE_CASES

pytest.importorskip("transformers")
pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    make_layouts(folder)
    return folder


@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=lambda case: f"{case.layout}: {case.title}")
def test_nothing_that_was_downloaded_runs(
    case: Case, layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    target = make_case(case, layouts, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO(hostile.YES))
    monkeypatch.delitem(sys.modules, hostile.MODULE, raising=False)
    outcome = load_with_vfm(case, target)  # "" if it loads without what is hostile
    assert "\n" not in outcome
    assert not (folder / hostile.MARK).exists()


def test_the_corpus_has_fifty_different_cases() -> None:
    assert len({(case.layout, case.kind, case.title) for case in CASES}) == len(CASES) == 50
    assert min(Counter(case.kind for case in CASES).values()) >= 2


@pytest.mark.parametrize("case", hostile.UNCHANGED, ids=lambda case: case.layout)
def test_the_folders_load_without_what_is_hostile(
    case: Case, layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_case(case, layouts, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    assert load_with_vfm(case, target) == ""


EXECUTED: dict[str, Callable[[Path], object]] = {
    "module": lambda mark: exec(hostile.code(mark), {}),
    "pickle": lambda mark: pickle.loads(hostile.plain_pickle(mark)),
    "torch": lambda mark: torch.load(io.BytesIO(hostile.torch_file(mark)), weights_only=False),
    "old torch": lambda mark: torch.load(io.BytesIO(hostile.old_torch_file(mark)), weights_only=False),
    "npy": lambda mark: np.load(io.BytesIO(hostile.numpy_pickle(mark)), allow_pickle=True),
    "npz": lambda mark: np.load(io.BytesIO(hostile.numpy_archive(mark)), allow_pickle=True)["numbers"],
}


@pytest.mark.parametrize("name", EXECUTED)
def test_what_the_cases_hold_would_run(name: str, tmp_path: Path) -> None:
    EXECUTED[name](tmp_path / hostile.MARK)
    assert (tmp_path / hostile.MARK).exists()
