"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from vfm import core as stages
from vfm.flow.recipe.recipe import load_recipe
from vfm_eva.plugin import vfm_stages

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_of_the_readme_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    (cosine,) = map(float, re.findall(r"cosine ([\d.-]+)", capsys.readouterr().out))
    assert 0.25 < cosine < 1


def test_recipes_of_the_readme_are_valid(tmp_path):
    whole, several, cached, tuned, *_ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    without = "".join(
        line for line in whole.splitlines(keepends=True) if "eva" not in line and "samples_seen" not in line
    )
    (tmp_path / "eva.yaml").write_text(whole, encoding="utf-8")
    (tmp_path / "cached.yaml").write_text(without + cached, encoding="utf-8")
    other = "  - {kind: models.vision, name: dinov2, source: vit_small_patch14_dinov2}\n"
    (tmp_path / "several.yaml").write_text(without.replace("name: teacher", "name: clip") + other + several)
    (tmp_path / "tuned.yaml").write_text(whole + tuned, encoding="utf-8")
    known = {stage.kind_name(): stage for stage in [*stages.vfm_stages(), *vfm_stages()]}
    expected = {
        "eva": ["pool", "teacher", "eva"],
        "several": ["pool", "clip", "dinov2", "eva", "student_clip"],
        "cached": ["pool", "teacher", "targets", "eva"],
        "tuned": ["pool", "teacher", "eva", "train", "val", "sketch", "classifier", "robust"],
    }
    for file, names in expected.items():
        recipe = load_recipe(str(tmp_path / f"{file}.yaml"), known)
        assert [stage.name for stage in recipe.stages] == names


def test_stages_of_the_readme_are_well_formed():
    known = {stage.kind_name(): stage for stage in [*stages.vfm_stages(), *vfm_stages()]}
    found = [
        known[stage["kind"]].model_validate(stage).name
        for block in re.findall(r"```yaml\nstages:\n(.*?)```", README, re.DOTALL)
        for stage in yaml.safe_load(block)
    ]
    assert {"eva", "detector", "segmenter", "eva_g"} <= set(found)
