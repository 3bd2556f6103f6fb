"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    exec(code, {})
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "train.yaml").write_text(text, encoding="utf-8")
    known = stage_types(load_plugins())
    recipe = load_recipe(str(tmp_path / "train.yaml"), known)
    assert [stage.name for stage in recipe.stages] == ["pool", "eva", "clip"]
