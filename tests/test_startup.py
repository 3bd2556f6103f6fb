"""What commands over all packages must not import, since it takes longer than all that they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfm.cli import FILES, app

UNUSED = {
    "plan quickstart": (
        "torch",
        "numpy",
        "pyarrow",
        "scipy",
        "numba",
        "matplotlib",
        "timm",
        "open_clip",
        "vfm.report",
        "vfm.cli.recipe",
        "vfm.models.stages",
        "vfm.data.annotated.stages",
        "vfm_curation.crawl.stages",
        "vfm_diva.mllm.stages",
        "vfm_eva.dense.segment.stages",
        "vfm.cli.store",
        "vfm.flow.execution.parallel",
    ),
    "finetune --help": ("torch", "numpy", "pyarrow", "scipy", "numba", "matplotlib", "timm", "open_clip"),
}
PROGRAM = """
import sys
from vfm.cli import main
try:
    main()
finally:
    print("modules:", *sys.modules)
"""


@pytest.mark.parametrize("words", UNUSED)
def test_a_command_does_not_import_what_it_does_not_use(words: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert "vfm.cli" in loaded
    assert loaded.intersection(UNUSED[words]) == set()


def test_each_command_is_in_the_file_that_is_imported_for_it() -> None:
    files = {command.name: command.callback.__module__.rpartition(".")[2] for command in app.registered_commands}
    assert files == {command: file for file, commands in FILES.items() for command in commands}
