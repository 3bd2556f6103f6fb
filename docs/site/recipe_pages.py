"""A page for each shipped recipe: the comment that it begins with, its stages, its YAML; and one that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import results
from escaping import escaped

from vfm.flow.recipe.recipe_source import RecipeSource, about_recipe, read_source, read_text
from vfm.flow.recipe.shipped import PURPOSES, package_of, shipped_files

INDEX = "recipes/index.md"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first."""
    yield INDEX, _INDEX + "\n".join(map(_group, PURPOSES))
    for name in shipped_files("recipes"):
        yield f"recipes/{name}.md", _page(name)


def paths(purpose: str) -> list[str]:
    """Return the paths of the pages of the recipes for a purpose."""
    return [f"recipes/{name}.md" for name in _files(purpose)]


def _files(purpose: str) -> dict[str, Path]:
    return {name: file for name, file in shipped_files("recipes").items() if file.parent.name == purpose}


def _group(purpose: str) -> str:
    """Return the heading and the table of the recipes for a purpose."""
    rows = [
        f"| [{name}]({name}.md) | {package_of(file).replace('_', '-')} | {about_recipe(file)} |"
        for name, file in _files(purpose).items()
    ]
    return "\n".join((f"## {PURPOSES[purpose]}\n", "| recipe | package | about |", "|---|---|---|", *rows, ""))


def recipes_by_kind() -> dict[str, list[str]]:
    """Return the names of the recipes that have a stage of a kind, by kind."""
    found: dict[str, list[str]] = {}
    for name in shipped_files("recipes"):
        for kind in dict.fromkeys(stage["kind"] for stage in _source(name).value["stages"]):
            found.setdefault(kind, []).append(name)
    return found


def _page(name: str) -> str:
    source = _source(name)
    lines = shipped_files("recipes")[name].read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    stages = [(stage["name"], stage["kind"]) for stage in source.value["stages"]]
    base = Path(source.bases[0]).stem if source.bases else ""
    measured = results.page_link(name)
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
    file = shipped_files("recipes")[name]
    return read_source(read_text(file), file.name, file.parent)


def _prose(lines: list[str]) -> Iterator[str]:
    """Yield a comment as Markdown: what is indented is a command."""
    for indented, group in groupby(lines, key=lambda line: line.startswith("  ")):
        if indented:
            yield from ("", "```text", *(line.strip() for line in group), "```", "")
        else:
            yield re.sub(r"`(\w+)`", _recipe_link, escaped("\n".join(group)))


def _recipe_link(code: re.Match[str]) -> str:
    return f"[{code[0]}]({code[1]}.md)" if code[1] in shipped_files("recipes") else code[0]


_INDEX = """# Recipes

The recipes that ship with vfm. `vfm run NAME` runs one, `vfm plan NAME` shows what it would do, and
`vfm init my.yaml --like NAME` writes a copy to change.

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
