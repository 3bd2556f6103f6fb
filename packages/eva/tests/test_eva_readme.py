"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    (cosine,) = map(float, re.findall(r"cosine ([\d.-]+)", capsys.readouterr().out))
    assert 0.25 < cosine < 1


def test_recipe_of_the_readme_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "eva.yaml").write_text(text, encoding="utf-8")
    known = stage_types(load_plugins())
    recipe = load_recipe(str(tmp_path / "eva.yaml"), known)
    assert [stage.name for stage in recipe.stages] == ["pool", "teacher", "eva"]
