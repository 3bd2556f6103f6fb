"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest

from vfm.flow.recipe import load_recipe
from vfm.plugins import load_plugins, stage_types

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['anchor_loss', 'cosine_to_old', 'denoising_loss'] tensor(True)\n"


def test_recipe_of_the_readme_is_well_wired(tmp_path: Path) -> None:
    first, latents, page = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    whole = f"{first}{page}  - {{kind: shapes.choices, name: pairs}}\n  - {{kind: shapes.classes, name: val}}\n"
    own = "  - {kind: data.pairs, name: pool, path: pool.tar}\n  - {kind: models.clip, name: clip, source: ViT-B-32}\n"
    for text, count in ((first, 4), (_in_order(whole), 10), (f"stages:\n{own}{latents}", 5)):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), stage_types(load_plugins()))
        assert len(recipe.stages) == count


def _in_order(text: str) -> str:
    """Data sets first, since a stage names earlier ones."""
    head, *lines = text.splitlines(keepends=True)
    return head + "".join(sorted(lines, key=lambda line: not line.startswith(("  - {kind: data", "  - {kind: shapes"))))
