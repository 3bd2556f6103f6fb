"""The examples of the README work."""

import re
from pathlib import Path

import pytest

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['anchor_loss', 'cosine_to_old', 'denoising_loss'] tensor(True)\n"


def test_recipe_of_the_readme_loads(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert len(load_recipe(str(tmp_path / "recipe.yaml"), stage_types(load_plugins())).stages) == 4
