"""A page for each kind of stage with its fields, from the same rows that `vfm stages KIND` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby

import recipe_pages
from escaping import escaped

from vfm import plugin
from vfm.cli.fields.field_table import FieldRow, field_rows
from vfm.interfaces import load_plugins, stage_types

INDEX = "stages/index.md"
HEADS = "| field | type | default | description |\n|---|---|---|---|"


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first."""
    kinds = stage_types(load_plugins())
    used = recipe_pages.recipes_by_kind()
    yield INDEX, _index(kinds)
    for kind, stage in kinds.items():
        yield f"stages/{kind}.md", _page(kind, stage, used.get(kind, []))


def _index(kinds: dict[str, type[plugin.Stage]]) -> str:
    parts = [_INDEX]
    for family, members in groupby(kinds.items(), key=lambda item: item[0].partition(".")[0]):
        parts += [f"\n## {family}\n", "| kind | makes | description |\n|---|---|---|"]
        for kind, stage in members:
            about = inspect.cleandoc(stage.__doc__ or "").partition("\n")[0]
            parts.append(f"| [{kind}]({kind}.md) | `{stage.makes.__name__}` | {escaped(about)} |")
    return "\n".join(parts) + "\n"


def _page(kind: str, stage: type[plugin.Stage], used: list[str]) -> str:
    package = stage.__module__.partition(".")[0]
    distribution = "vfm-core" if package == "vfm" else package.replace("_", "-")
    parts = [
        f"# {kind}\n",
        inspect.cleandoc(stage.__doc__ or ""),
        f"\nMakes {_artifact(stage.makes)}. Class `{stage.__module__}.{stage.__qualname__}` of `{distribution}`.\n",
        f"## Fields\n\nAs `vfm stages {kind}` lists them.\n\n{HEADS}",
    ]
    for row in field_rows(stage):
        parts.append(_group(row) if row.heading else _line(row))
    if used:
        parts.append("\n## Recipes\n\n" + ", ".join(f"[{name}](../recipes/{name}.md)" for name in used))
    return "\n".join(parts) + "\n"


def _artifact(kind: type[plugin.Artifact]) -> str:
    """Return the name of an artifact type, as a link if the reference has it."""
    if kind.__name__ in plugin.__all__:
        return f"[{kind.__name__}][{kind.__module__}.{kind.__qualname__}]"
    return f"`{kind.__name__}`"


def _group(row: FieldRow) -> str:
    """Return the heading of a group of fields and of its table.

    The fields of a base class stand under its name; a mapping or a slot has a row of its own.
    """
    name, _, _, about = row.cells
    if name.startswith("("):
        return f"\n### {name.strip('()')}\n\n{escaped(about)}\n\n{HEADS}"
    return f"\n### {name}\n\n{HEADS}\n{_line(row)}"


def _line(row: FieldRow) -> str:
    name, kind, default, about = row.cells
    cells = [f"`{cell}`" if cell else "" for cell in (name, kind, default)]
    return "| " + " | ".join([*cells, escaped(about)]) + " |"


_INDEX = """# Stages

A recipe is a list of stages. Each has a `kind`, a `name`, its own fields, and the fields that all stages have; inputs
are the names of earlier stages or paths of saved artifacts. Fields within a mapping are listed as `--set` writes them,
`schedule.warmup_steps`; a field with a `type` is a part, to which [plugins](../docs/plugins.md) add choices.
"""
