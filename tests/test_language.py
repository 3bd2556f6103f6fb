"""Plain English: docstrings open with a verb, and the words that this project once overused do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A function's docstring says what it does: "Return ...", "Compute ...". These words begin a description instead.
NO_VERBS = {
    "a", "all", "an", "any", "as", "at", "by", "each", "every", "for", "from", "how", "if", "in", "it", "its", "no",
    "of", "on", "one", "some", "such", "that", "the", "their", "these", "this", "those", "to", "two", "what", "when",
    "where", "whether", "which", "who", "whose", "with", "without",
}  # fmt: skip

# Words that personify code or invert a sentence, with what to write instead.
WORDS = {
    r"\b(is|are|was|were|be) told\b": "reported, given",
    r"\btells?\b": "reports, returns, says",
    r"\btold\b": "reported",
    r"\bwhom\b": "which models",
    r"\bput up with\b": "tolerated",
    r"\bsays? not\b": "does not say",
    r"\bknows? not\b": "does not know",
    r"\bhangs? on\b": "depends on",
    r"\bwhat there is\b": "what exists",
    r"\bgoes on where\b": "resumes",
    r"\bjudged?\b": "evaluate, evaluated",
    r"\bjudges\b": "evaluates",
    r"\bat hand\b": "available",
    r"\bis asked\b": "is called",
    r"\ba voice\b": "methods that report",
}
DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "packages/*/README.md", "packages/*/src/*/recipes/**/*.yaml")
    for file in ROOT.glob(pattern)
)
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield the functions with a docstring, except properties: those are described as attributes are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if not decorators & {"property", "cached_property", "functools.cached_property"}:
                yield node, text


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_docstrings_of_functions_open_with_a_verb(file: Path) -> None:
    wrong = []
    for node, text in functions(ast.parse(file.read_text())):
        first = re.split(r"[^\w`-]", text.strip(), maxsplit=1)[0].lower()
        if first in NO_VERBS or first.startswith("`"):
            wrong.append(f"{node.name}: {text.splitlines()[0]}")
    assert wrong == []


def prose(file: Path) -> Iterator[str]:
    """Yield the lines that people read: of a module its strings and comments, of a document everything."""
    text = file.read_text()
    if file.suffix != ".py":
        yield from text.splitlines()
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from node.value.splitlines()
    yield from (line.partition("#")[2] for line in text.splitlines() if "# " in line)


@pytest.mark.parametrize("file", [*SOURCES, *DOCUMENTS], ids=relative)
def test_words_that_make_a_reader_stop_do_not_come_back(file: Path) -> None:
    found = [
        f"{match[0]!r} ({instead}): {line.strip()[:100]}"
        for line in prose(file)
        for pattern, instead in WORDS.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]
    assert found == []
