"""A page for each shipped recipe: the comment that it begins with, its stages, its YAML; and one that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import results
import yaml
from escaping import escaped

from vfm.flow.recipe_source import SHIPPED, shipped_recipes

INDEX = "recipes/index.md"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first."""
    recipes = shipped_recipes()
    rows = [f"| [{name}]({name}.md) | {about} |" for name, about in recipes.items()]
    yield INDEX, _INDEX.format(rows="\n".join(rows))
    for name in recipes:
        yield f"recipes/{name}.md", _page(SHIPPED / f"{name}.yaml")


def recipes_by_kind() -> dict[str, list[str]]:
    """Return the names of the recipes that have a stage of a kind, by kind."""
    found: dict[str, list[str]] = {}
    for name in shipped_recipes():
        for kind in dict.fromkeys(stage["kind"] for stage in _stages(_keys(SHIPPED / f"{name}.yaml"))):
            found.setdefault(kind, []).append(name)
    return found


def _page(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    keys = _keys(file)
    rows = [
        f"| `{stage.get('name', '')}` | [{stage['kind']}](../stages/{stage['kind']}.md) |" for stage in _stages(keys)
    ]
    measured = results.section_link(file.stem)
    base = f"It begins with the stages of [{keys['base']}]({keys['base']}.md).\n\n" if "base" in keys else ""
    return _PAGE.format(
        name=file.stem,
        about="\n".join(_prose([line.removeprefix("#").removeprefix(" ") for line in lines[:length]])),
        measured=f"\nMeasured: {measured}.\n" if measured else "",
        yaml="\n".join(lines[length:]).strip(),
        base=base,
        rows="\n".join(rows),
    )


def _keys(file: Path) -> dict[str, Any]:
    keys: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return keys


def _stages(keys: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages that a recipe adds; those that only change one of its base have no kind."""
    return [stage for stage in keys.get("stages", ()) if "kind" in stage]


def _prose(lines: list[str]) -> Iterator[str]:
    """Yield a comment as Markdown: what is indented is a command."""
    for indented, group in groupby(lines, key=lambda line: line.startswith("  ")):
        if indented:
            yield from ("", "```text", *(line.strip() for line in group), "```", "")
        else:
            yield re.sub(r"`(\w+)`", _recipe_link, escaped("\n".join(group)))


def _recipe_link(code: re.Match[str]) -> str:
    return f"[{code[0]}]({code[1]}.md)" if (SHIPPED / f"{code[1]}.yaml").is_file() else code[0]


_INDEX = """# Recipes

The recipes that ship with vfm. `vfm run NAME` runs one, `vfm plan NAME` shows what it would do, and
`vfm init my.yaml --like NAME` writes a copy to change.

| recipe | about |
|---|---|
{rows}
"""

_PAGE = """# {name}

{about}
{measured}
## Stages

{base}| name | kind |
|---|---|
{rows}

## Recipe

`vfm init my.yaml --like {name}` writes it with its comments.

```yaml
{yaml}
```
"""
