"""A page for each shipped recipe: the comment that it begins with, its stages, its YAML; and one that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import results
from escaping import escaped

from vfm.flow.recipe.recipe_source import SHIPPED, RecipeSource, read_source, read_text, shipped_recipes

INDEX = "recipes/index.md"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first."""
    recipes = shipped_recipes()
    rows = [f"| [{name}]({name}.md) | {about} |" for name, about in recipes.items()]
    yield INDEX, _INDEX.format(rows="\n".join(rows))
    for name in recipes:
        yield f"recipes/{name}.md", _page(name)


def recipes_by_kind() -> dict[str, list[str]]:
    """Return the names of the recipes that have a stage of a kind, by kind."""
    found: dict[str, list[str]] = {}
    for name in shipped_recipes():
        for kind in dict.fromkeys(stage["kind"] for stage in _source(name).value["stages"]):
            found.setdefault(kind, []).append(name)
    return found


def _page(name: str) -> str:
    source = _source(name)
    lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    stages = [(stage["name"], stage["kind"]) for stage in source.value["stages"]]
    base = Path(source.bases[0]).stem if source.bases else ""
    measured = results.section_link(name)
    return _PAGE.format(
        name=name,
        about="\n".join(_prose([line.removeprefix("#").removeprefix(" ") for line in lines[:length]])),
        measured=f"\nMeasured: {measured}.\n" if measured else "",
        base=f"Those of [{base}]({base}.md) are among them.\n\n" if base else "",
        rows="\n".join(f"| `{stage}` | [{kind}](../stages/{kind}.md) |" for stage, kind in stages),
        yaml="\n".join(lines[length:]).strip(),
    )


def _source(name: str) -> RecipeSource:
    """Return the keys of a recipe, with those of its base."""
    file = SHIPPED / f"{name}.yaml"
    return read_source(read_text(file), file.name, SHIPPED)


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
