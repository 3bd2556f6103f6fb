"""Damaged files of a generator: each is one line that names the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vfm.plugin import GeneratorCheckpoint, UserError
from vfm_diva.generator.generator import load_generator


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\xff"])
@pytest.mark.parametrize(
    "file", ["unet/config.json", "scheduler/scheduler_config.json", "condition/config.json", "pixels/config.json"]
)
def test_damaged_json_of_a_generator_is_named(file: str, text: str, prior: GeneratorCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    shutil.copytree(prior.path, folder)
    assert (folder / file).is_file()
    (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=rf"{Path(file).name}: (not|expected) ") as raised:
        load_generator(GeneratorCheckpoint.load(folder), weights=False)
    assert "\n" not in str(raised.value)
