"""A page for each public module with every name of its `__all__`, for mkdocstrings to fill from the docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import griffe
from documents import ROOT
from escaping import escaped

PUBLIC = (
    "vfm", "vfm.plugin", "vfm.data", "vfm.data.annotated", "vfm.data.videos", "vfm.models", "vfm.train", "vfm.eval",
    "vfm.statistics", "vfm_kernels",
)  # fmt: skip
SOURCES = [str(ROOT / f"packages/{package}/src") for package in ("core", "kernels")]
INDEX = "reference/index.md"
KINDS = {"function": "Functions", "class": "Classes", "attribute": "Constants and types", "module": "Modules"}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first.

    An object that several modules export is described on the page of the first, to which the others link.

    Raises:
        ValueError: a name of `__all__` is not found in the source.
    """
    loader = griffe.GriffeLoader(search_paths=SOURCES)
    for package in ("vfm", "vfm_kernels"):
        loader.load(package)
    loader.resolve_aliases(external=False)
    modules = {name: loader.modules_collection[name] for name in PUBLIC}
    rows = [f"| [`{name}`]({name}.md) | {_first_line(module)} |" for name, module in modules.items()]
    yield INDEX, _INDEX.format(rows="\n".join(rows))
    described: dict[str, str] = {}
    for name, module in modules.items():
        yield f"reference/{name}.md", _page(name, module, described)


def _page(name: str, module: griffe.Module, described: dict[str, str]) -> str:
    """Return the page of a module; `described` has the page and anchor of each object so far, and gets its own."""
    members = {str(export): _member(name, module, str(export)) for export in import_module(name).__all__}
    parts = [f"# {name}\n", module.docstring.value if module.docstring else ""]
    for kind, title in KINDS.items():
        chosen = {member: found for member, found in members.items() if found.kind.value == kind}
        if not chosen:
            continue
        parts += [f"\n## {title}\n", "| name | about |\n|---|---|"]
        new = {member: found for member, found in chosen.items() if found.canonical_path not in described}
        for member, found in new.items():
            described[found.canonical_path] = f"{name}.md#{name}.{member}"
        parts += [
            f"| [`{m}`]({described[found.canonical_path]}) | {_first_line(found)} |" for m, found in chosen.items()
        ]
        parts += [f"\n::: {name}.{member}" for member in new]
    return "\n".join(parts) + "\n"


def _member(name: str, module: griffe.Module, export: str) -> griffe.Object | griffe.Alias:
    """Return what a module exports under a name.

    Raises:
        ValueError: griffe does not find it in the source.
    """
    try:
        found = module[export]
        found.kind  # noqa: B018  (follows an alias to its end)
    except (KeyError, griffe.AliasResolutionError):
        raise ValueError(f"{name}.{export}: not found; a constant needs an assignment of its own") from None
    return found


def _first_line(item: griffe.Object | griffe.Alias) -> str:
    return escaped(item.docstring.value.partition("\n")[0]) if item.docstring else ""


_INDEX = """# API

The public names. Code outside core imports only these; everything else may change.

| module | about |
|---|---|
{rows}
"""
