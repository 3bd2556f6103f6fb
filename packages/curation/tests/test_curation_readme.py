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
    kept, expected = map(float, re.findall(r"[\d.]+", capsys.readouterr().out))
    assert abs(kept - expected) < 25
    assert 0 < kept < 200


def test_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "curate.yaml").write_text(text, encoding="utf-8")
    known = stage_types(load_plugins())
    recipe = load_recipe(str(tmp_path / "curate.yaml"), known)
    assert [stage.name for stage in recipe.stages] == ["pool", "entries", "matches", "curated"]
