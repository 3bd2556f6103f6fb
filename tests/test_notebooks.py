"""The notebooks run from top to bottom, and what is saved in them is small, whole, and says nothing of a machine."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from outside import ROOT
from printed_text import differences, printed

NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
SAME_ON_ALL = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
A_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|mnt|opt|usr|var|Users|content)\b|[A-Z]:\\\\")

WRONG_MEANINGS = {
    "a mean counted as a seed": (
        "write_a_plugin",
        """values = run.to_pandas().query("metric == 'acc1'")""",
        """import pandas as pd
values = run.means().to_pandas().rename(columns={"mean": "value"})
values = pd.concat([run.to_pandas(), values]).query("metric == 'acc1'")""",
    ),
    "the difference the other way round": (
        "write_a_plugin",
        'by_seed[name] - by_seed["clip"]',
        'by_seed["clip"] - by_seed[name]',
    ),
    "labels of two methods swapped": (
        "write_a_plugin",
        "for name in list(methods)[1:]:",
        """by_seed = by_seed.rename(columns={"smoothed_1": "smoothed_3", "smoothed_3": "smoothed_1"})
for name in list(methods)[1:]:""",
    ),
    "a test that ignores the pairs": ("write_a_plugin", "import ttest_rel", "import ttest_ind as ttest_rel"),
    "another metric": (
        "evaluate_honestly",
        """frame[frame["metric"] == "acc1"]""",
        """frame[frame["metric"] == "acc5"]""",
    ),
    "a share as a percentage": ("evaluate_honestly", "accuracy[[", "accuracy.assign(value=100 * accuracy.value)[["),
    "an interval's width as its half": (
        "evaluate_honestly",
        '"low"]) / 2',
        '"low"]) / 1',
    ),
    "uncorrected p-values": ("evaluate_honestly", "list(range(len(others), 0, -1))", "([1] * len(others))"),
    "the best seed for the mean": ("write_a_plugin", "mean {gaps.mean()", "mean {gaps.max()"),
    "the ends of a line swapped": ("finetune_clip", '"alpha": alpha}\n', '"alpha": 1 - alpha}\n'),
    "rows in another order than their names": (
        "finetune_clip",
        'values="value").loc[names] * 100',
        'values="value").set_axis(names) * 100',
    ),
    "the share of all instead of those kept": (
        "curate_captions",
        'of_tail = subset["entries"]',
        'of_tail = table["entries"]',
    ),
}


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[Any]:
    """What a cell shows: the name of a stream, or the formats of a result."""
    return [output.get("name") or sorted(output.get("data", {"error": 0})) for output in cell.outputs]


def readable(notebook: Any) -> str:
    """What is shown, as text, pictures left out."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    formats = [data for output in outputs for name, data in output.get("data", {}).items() if "image" not in name]
    return "\n".join([*(output.get("text", "") for output in outputs), *formats])


def test_there_are_four() -> None:
    assert len(NOTEBOOKS) == 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a notebook and its copies run in, so that the copies take finished stages from its store."""
    return cache(lambda name: tmp_path_factory.mktemp(name))


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a notebook, with instructions that all x86 processors have, and list what its cells print."""
    for name, value in SAME_ON_ALL.items():
        monkeypatch.setenv(name, value)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False).execute()
    return [printed(cell) for cell in code_cells(notebook)]


def all_differences(committed: list[str], shown: list[str]) -> list[str]:
    return [line for old, new in zip(committed, shown, strict=True) for line in differences(old, new)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_prints_what_is_saved_in_it(
    path: Path, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(path, as_version=4)
    committed = [printed(cell) for cell in code_cells(notebook)]
    formats = [kinds(cell) for cell in code_cells(notebook)]
    shown = execute(notebook, folders(path.stem), monkeypatch)
    if "VFM_SAVE_NOTEBOOKS" in os.environ:
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        return
    assert all_differences(committed, shown) == []
    assert [kinds(cell) for cell in code_cells(notebook)] == formats


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG_MEANINGS.values(), ids=WRONG_MEANINGS)
def test_a_wrong_meaning_changes_one_cell(name: str, right: str, wrong: str) -> None:
    cells = code_cells(nbformat.read(ROOT / f"examples/notebooks/{name}.ipynb", as_version=4))
    assert [right in cell.source for cell in cells].count(True) == 1
    assert wrong not in right


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right", "wrong"), WRONG_MEANINGS.values(), ids=WRONG_MEANINGS)
def test_a_wrong_meaning_is_noticed(
    name: str, right: str, wrong: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the test: the copy of a notebook runs without an error, and prints something else."""
    notebook = nbformat.read(ROOT / f"examples/notebooks/{name}.ipynb", as_version=4)
    committed = [printed(cell) for cell in code_cells(notebook)]
    (changed,) = [cell for cell in code_cells(notebook) if right in cell.source]
    changed.source = changed.source.replace(right, wrong)
    assert all_differences(committed, execute(notebook, folders(name), monkeypatch))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_saved_is_short_whole_and_of_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert len(text) < 300_000
    assert 10 <= len(notebook.cells) <= 16
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    shown = [kind for cell in code_cells(notebook) for kind in kinds(cell)]
    assert "stderr" not in shown
    assert ["error"] not in shown
    assert any("text/html" in kind for kind in shown)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    words = readable(notebook)
    assert re.findall(rf"(?<!\w){re.escape(socket.gethostname())}(?!\w)", words) == []
    assert A_PATH.findall(words) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_to_files_that_are_there(path: Path) -> None:
    prose = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#]+)\)", "\n".join(prose))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []
