"""The examples of the README work."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from diva_toy import tune_config
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm_diva import Anchor

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['anchor_loss', 'cosine_to_old', 'denoising_loss'] tensor(True)\n"


def test_own_anchor_of_the_readme_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_anchor.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_anchor")
    try:
        anchor = tune_config(anchor={"type": "distance", "weight": 0.5}).anchor
        new, old = torch.eye(3)[:2]
        assert anchor.build(None)(new[None], old[None]).tolist() == [1.0]
    finally:
        del Anchor.choices["distance"]


def test_recipes_of_the_readme_load(tmp_path: Path) -> None:
    first, released, latents, page, language_model, lmms = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    whole = f"{first}{page}  - {{kind: shapes.choices, name: pairs}}\n  - {{kind: shapes.classes, name: val}}\n"
    own = "  - {kind: data.pairs, name: pool, path: pool.tar}\n  - {kind: models.clip, name: clip, source: ViT-B-32}\n"
    tuned = "  - {kind: models.clip, name: diva, source: ViT-B-32}\n"
    for text, count in (
        (first, 4),
        (released, 2),
        (_in_order(whole), 10),
        (f"stages:\n{own}{latents}", 5),
        (f"stages:\n{tuned}{language_model}", 10),
        (f"stages:\n{lmms}", 1),
    ):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), stage_types(load_plugins()))
        assert len(recipe.stages) == count


def _in_order(text: str) -> str:
    """Return the recipe with datasets first, since a stage refers to earlier ones."""
    head, *lines = text.splitlines(keepends=True)
    return head + "".join(sorted(lines, key=lambda line: not line.startswith(("  - {kind: data", "  - {kind: shapes"))))
