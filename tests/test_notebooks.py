"""The notebooks run from top to bottom, and what is saved in them is small, whole, and says nothing of a machine."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from outside import ROOT

NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
A_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|mnt|opt|usr|var|Users|content)\b|[A-Z]:\\\\")


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_saved_in_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    saved = [kinds(cell) for cell in code_cells(notebook)]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False).execute()
    if "VFM_SAVE_NOTEBOOKS" in os.environ:
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        return
    assert [kinds(cell) for cell in code_cells(notebook)] == saved


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
