"""`vfm plan --gpus`: steps on other numbers of devices, and what cannot be simulated, in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vfm.cli import app

RECIPE = """\
stages:
  - {kind: data.pairs, name: data, path: "(absent)"}
  - {kind: clip.train, name: clip, data: data, model: ViT-Pico-8-32, steps: 10, global_batch_size: 64}
"""


def plan(folder: Path, *words: str) -> Result:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    return CliRunner().invoke(app, ["plan", str(recipe), "--store", str(folder / "store"), *words])


def test_steps_are_shown_by_number_of_gpus_and_sharding(tmp_path: Path) -> None:
    done = plan(tmp_path, "--gpus", "8,64", "--card", "a100")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    rows = [row for row in rows if row[:1] in (["8"], ["64"])]
    assert [row[:3] for row in rows] == [
        ["8", "ddp", "8"],
        ["8", "fsdp", "8"],
        ["64", "ddp", "1"],
        ["64", "fsdp", "1"],
        ["64", "hsdp", "1"],
    ]
    assert "clip: 64 samples a step on A100, simulated" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "some"], "--gpus: expected numbers of devices such as 8,64,512; got some"),
        (["--gpus", "8", "--card", "abacus"], "--card: expected one of a100-40, a100, h100, h200, b200; got abacus"),
        (["--gpus", "48"], "--gpus: clip: global_batch_size: expected a multiple of 48 devices, got 64"),
    ],
)
def test_wrong_numbers_and_cards_are_a_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = plan(tmp_path, *words)
    assert done.exit_code == 2
    assert message in done.stderr
