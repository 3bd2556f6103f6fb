"""The rules of the house: format, lint, types, the walls between packages, and words that do not belong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from vfm.base import choices_of
from vfm.flow.recipe.recipe_source import read_source
from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import load_plugins, stage_types
from vfm.plugin import Stage

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        pytest.param(("mypy",), marks=pytest.mark.slow),
        ("lint-imports",),
    ],
    ids=lambda command: " ".join(command),
)
def test_tool_has_no_complaint(command: tuple[str, ...]) -> None:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_no_module_is_named_utils() -> None:
    forbidden = {"utils", "helpers", "misc", "common"}
    assert [path for path in ROOT.glob("packages/*/src/**/*.py") if path.stem in forbidden] == []


def test_every_package_is_typed_and_has_a_readme_and_a_licence() -> None:
    for package in sorted((ROOT / "packages").iterdir()):
        assert list(package.glob("src/*/py.typed")), package
        assert len((package / "README.md").read_text().splitlines()) > 5, package
        assert (package / "LICENSE").is_file(), package


def test_what_a_message_or_a_page_wants_installed_exists() -> None:
    """Of packages that are on no index, `pip install vfm-core[torch]` would find nothing."""
    extras: dict[str, set[str]] = {}
    for file in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras[project["name"]] = {"", *project.get("optional-dependencies", {})}
    pages = [page for folder in ("docs", "examples", "packages") for page in (ROOT / folder).glob("**/*.md")]
    files = [*ROOT.glob("packages/*/src/**/*.py"), ROOT / "README.md", *pages]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    assert [file for file, text in texts.items() if re.search(r"install '?vfm-", text)] == []
    named = {
        found for text in texts.values() for found in re.findall(r"[`'\"](vfm-[a-z]+)(?:\[([a-z-]+)\])?[`'\"]", text)
    }
    assert {("vfm-core", "torch"), ("vfm-eva", "")} <= named
    assert [(package, extra) for package, extra in named if extra not in extras.get(package, {extra})] == []


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the configurations that a field of this type can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from choices_of(annotation)
    for part in get_args(annotation):
        yield from parts_of(part)


def undescribed(model: type[BaseModel], where: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name != "kind" and not field.description:
            yield f"{where}.{name}"
        for part in parts_of(field.annotation):
            if not issubclass(part, Stage):
                yield from undescribed(part, f"{where}.{name}")


@pytest.mark.parametrize("kind", stage_types(load_plugins()).items(), ids=lambda item: item[0])
def test_every_setting_of_every_stage_says_what_it_is_for(kind: tuple[str, type[Stage]]) -> None:
    assert sorted(set(undescribed(kind[1], kind[0]))) == []


RECIPES = [*shipped_files("recipes").values(), ROOT / "tests/recipes/every_stage.yaml"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_stage_is_read_by_another_process_as_it_was_written(recipe: Path) -> None:
    """Each process of a stage in several reads it from a file."""
    known = stage_types(load_plugins())
    for settings in read_source(recipe.read_text(encoding="utf-8"), recipe.name, recipe.parent).value["stages"]:
        kind = known[settings["kind"]]
        path = kind.model_fields.get("path")
        required = {"path": "data"} if path and path.is_required() else {}  # the user's
        stage = kind.model_validate({**required, **settings}, context=known)
        again = type(stage).model_validate(json.loads(json.dumps(stage.given_settings())), context=known)
        assert again.model_dump() == stage.model_dump()
