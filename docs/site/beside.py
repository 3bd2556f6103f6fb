"""The pages of examples/plain: a file's whole text, with the equations of its paper beside the functions."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

EQUATIONS: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("equations.toml").read_text(encoding="utf-8")
)


def has_equations(file: Path) -> bool:
    """Return whether a file is one whose equations are known."""
    return file.parent.name == "plain" and file.stem in EQUATIONS


def page(file: Path) -> str:
    """Return the page of a file: code at the left, equations at the right.

    Raises:
        ValueError: an equation belongs to a function that the file does not have.
    """
    lines, equations = file.read_text(encoding="utf-8").splitlines(), EQUATIONS[file.stem]
    parts = [*_parts(lines, set(equations))]
    if missing := set(equations) - {name for name, _ in parts}:
        raise ValueError(f"equations.toml: {file.name} has no {', '.join(sorted(missing))}")
    rows = [_ROW.format(code="\n".join(code).strip("\n"), notes=_notes(equations.get(name))) for name, code in parts]
    return _PAGE.format(name=file.name, length=len(lines), rows="\n".join(rows))


def _parts(lines: list[str], names: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the functions and classes of some names, and the lines before, between and after them without a name."""
    begin = 0
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            while start > begin and (not lines[start - 1] or lines[start - 1].startswith("# ")):  # a heading before it
                start -= 1
            if start > begin:
                yield "", lines[begin:start]
            yield node.name, lines[start : node.end_lineno]
            begin = node.end_lineno or 0
    yield "", lines[begin:]


def _notes(entry: dict[str, Any] | None) -> str:
    """Return the equations of a function as MathML, which needs no script, and where they are from."""
    if entry is None:
        return ""
    return "".join(convert(latex, display="block") for latex in entry["latex"]) + f"<p>{escape(entry['source'])}</p>"


_PAGE = """---
hide: [navigation, toc]
---

# {name}

The whole file, {length} lines, with the equations beside the functions that compute them. It runs alone, and tests
compare it with vfm's stages: [each method in one file](README.md).

{rows}
"""

_ROW = """<div class="beside" markdown>

```python
{code}
```

<div>{notes}</div>

</div>
"""
