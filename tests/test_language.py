"""Plain English and plain Python: docstrings open with a verb, and habits that this project once overused stay rare.

`python tests/test_language.py` prints how often they occur in documents, in docstrings and in code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
PAGES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "packages/*/README.md", "packages/*/benchmarks/README.md")
    for file in ROOT.glob(pattern)
)


@dataclass(frozen=True)
class Pattern:
    """A habit of style, and how often the documents and docstrings of the peers have it.

    Attributes:
        regex: pattern of its uses in prose.
        pages: most uses in 10,000 words of documents.
        docstrings: most uses in 10,000 words of docstrings and descriptions of settings.
        source: peer with that figure, the highest of timm, torchtitan, llm and open_clip, counted in November 2026.
    """

    regex: str
    pages: float
    docstrings: float
    source: str


PATTERNS = {
    "those of, that which": Pattern(r"\b(those|that) (of|which|that|with)\b", 1.1, 1.1, "the highest"),
    "what is, what the": Pattern(r"\bwhat (is|it|a|the|was)\b", 4.5, 4.5, "the highest"),
    "of one, of its own": Pattern(r"\bof (one|its own)\b", 0.4, 0.4, "the highest"),
    "semicolon": Pattern(r";", 4, 40, "timm (pages), torchtitan (docstrings)"),
    "trainings": Pattern(r"\btrainings\b", 0, 0, "all: none"),
    "beside": Pattern(r"\bbeside\b", 0.2, 0.2, "the highest"),
    "picture, photograph": Pattern(r"\b(pictures?|photographs?)\b", 0, 0, "rule of the house: an image is an image"),
    "fragment with of": Pattern(r"^\s*\w+: of\b", 0, 0, "rule of the house"),
}
MOST_RETURN = (
    0.1  # share of the docstrings of functions that open with "Return": llm 10 %, torchtitan 9, open_clip 6, timm 2
)
CHECKED = ["pages", "docstrings"]
# Share of docstrings with a habit: its pattern, and the highest share among timm and torchtitan in December 2026.
MOST_DOCSTRINGS = {
    "a list after a colon at the start": (r"\A(?:(?!\n\n).)*:\s+\S(?:(?!\n\n).)*(?:,| and | or )", 0.051),  # timm
    "', which'": (r", which", 0.025),  # torchtitan
    "a sentence that begins with None if": (r"(?:\A|\n\s*|[.;:] +)(?:None|Empty) (?:if|for|when|where)\b", 0.005),  # 0
}
SECTION = re.compile(r"^\s*(?:Args|Returns|Yields):$", re.MULTILINE)
FEWEST_SECTIONS = 0.2  # share of documented functions with arguments: torchtitan 20 %, timm 37
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
MOST_IN_CODE = {  # uses in 1,000 lines of sources; transformers, the densest peer, has 14 conditionals, timm 11
    "conditionals": 14,
    "comprehensions": 14,  # timm 6, torchtitan 9, datasets 17
    "comprehensions with two loops": 0,
    "assignment expressions": 0.2,
    "tuples assigned to tuples": 3.3,  # timm 1.2, transformers 0.7; `a, b = c(), d()` hides what belongs to what
}
FEWEST_COMMENTS = 0.03  # share of lines: timm 4.5 %, torchtitan 3 to 12, open_clip 7


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


def page_prose(text: str) -> str:
    """Return what a Markdown file says in sentences: no code, addresses, or cells of tables with numbers."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<=\n\n)(^ {4}.*\n)+|^\{\{.*\}\}$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\]\([^)]*\)|<[^>]*>|&\w+;", " ", text)
    return re.sub(r"\|[^|\n]*\d[^|\n]*(?=\|)", "|", text)


def docstring_prose(text: str) -> str:
    """Return the docstrings of a module and the descriptions of its settings, without code."""
    nodes = list(ast.walk(ast.parse(text)))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    keywords = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "description"]
    texts += [f"description: {value.value!s}" for value in keywords if isinstance(value, ast.Constant)]
    return re.sub(r"`[^`]*`", "code", "\n".join(texts))


def rates(group: str) -> dict[str, float]:
    """Return the uses of each pattern in 10,000 words of the pages or of the docstrings."""
    files, read = {"pages": (PAGES, page_prose), "docstrings": (SOURCES, docstring_prose)}[group]
    text = "\n".join(read(file.read_text(encoding="utf-8")) for file in files)
    words = len(re.findall(r"[A-Za-z]+(?:['’-][A-Za-z]+)*", text))
    return {
        name: len(re.findall(pattern.regex, text, re.IGNORECASE | re.MULTILINE)) * 10_000 / words
        for name, pattern in PATTERNS.items()
    }


def share_of_return() -> float:
    """Return the share of functions' docstrings that open with "Return"."""
    first = [text.split()[0] for file in SOURCES for _, text in functions(ast.parse(file.read_text()))]
    return first.count("Return") / len(first)


@pytest.mark.parametrize("group", CHECKED)
def test_patterns_are_no_more_frequent_than_in_the_peers(group: str) -> None:
    limits = {name: getattr(pattern, group) for name, pattern in PATTERNS.items()}
    assert {name: rate for name, rate in rates(group).items() if rate > limits[name]} == {}
    assert group != "docstrings" or share_of_return() <= MOST_RETURN


def all_docstrings() -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Yield the functions and classes of the sources with their docstrings."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                yield node, text


def shares_of_docstrings() -> dict[str, float]:
    """Return the share of docstrings with each habit."""
    texts = [text for _, text in all_docstrings()]
    patterns = {name: re.compile(regex, re.DOTALL) for name, (regex, _) in MOST_DOCSTRINGS.items()}
    return {name: sum(bool(regex.search(text)) for text in texts) / len(texts) for name, regex in patterns.items()}


def share_of_sections() -> float:
    """Return the share of documented functions with arguments that describe them or their result in sections."""
    described = []
    for node, text in all_docstrings():
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(argument.arg not in ("self", "cls") for argument in arguments):
                described.append(bool(SECTION.search(text)))
    return sum(described) / len(described)


def test_docstrings_are_laid_out_as_in_the_peers() -> None:
    shares = shares_of_docstrings()
    assert {name: share for name, share in shares.items() if share > MOST_DOCSTRINGS[name][1]} == {}
    assert share_of_sections() >= FEWEST_SECTIONS


def code_rates() -> dict[str, float]:
    """Return the uses of dense expressions in 1,000 lines of the sources."""
    texts = [file.read_text(encoding="utf-8") for file in SOURCES]
    counts = dict.fromkeys(MOST_IN_CODE, 0)
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            counts["conditionals"] += isinstance(node, ast.IfExp)
            counts["assignment expressions"] += isinstance(node, ast.NamedExpr)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                counts["tuples assigned to tuples"] += isinstance(node.value, ast.Tuple)
            if isinstance(node, COMPREHENSIONS):
                counts["comprehensions"] += 1
                counts["comprehensions with two loops"] += len(node.generators) > 1
    lines = sum(text.count("\n") for text in texts)
    return {name: count * 1000 / lines for name, count in counts.items()}


def share_of_comments() -> float:
    """Return the share of the lines of the sources that have a comment."""
    lines = [line for file in SOURCES for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(bool(re.search(r"^\s*#|\S  ?# ", line)) for line in lines) / len(lines)


def test_code_is_as_plain_as_the_peers_code() -> None:
    assert {name: rate for name, rate in code_rates().items() if rate > MOST_IN_CODE[name]} == {}


def test_comments_are_as_frequent_as_in_the_peers() -> None:
    assert share_of_comments() >= FEWEST_COMMENTS


def test_prose_leaves_out_code_and_numbers_and_keeps_the_rest() -> None:
    page = "A; b.\n\n    c; d\n\n- e\n    f; g\n\n```sh\nh; i\n```\n`j; k` [l](m;n)\n\n| o; p | 1; 2 |\n"
    assert re.findall(r"\w;", page_prose(page)) == ["A;", "f;", "o;"]
    module = '"""A; b."""\nx = Field(1, description="of the c; `d; e`")\ny = "f; g"\n'
    assert re.findall(r"\w;", docstring_prose(module)) == ["A;", "c;"]
    assert len(re.findall(PATTERNS["fragment with of"].regex, docstring_prose(module), re.MULTILINE)) == 1


if __name__ == "__main__":
    measured = {group: rates(group) for group in ("pages", "docstrings")}
    print(f"{'uses in 10,000 words':24}" + "".join(f"{group:>12}{'limit':>7}" for group in measured))
    for name, pattern in PATTERNS.items():
        columns = (f"{found[name]:12.1f}{getattr(pattern, group):7}" for group, found in measured.items())
        print(f"{name:24}" + "".join(columns))
    print(f"docstrings that open with Return: {share_of_return():.0%}, limit {MOST_RETURN:.0%}")
    for name, share in shares_of_docstrings().items():
        print(f"docstrings with {name}: {share:.1%}, limit {MOST_DOCSTRINGS[name][1]:.1%}")
    print(f"functions with sections: {share_of_sections():.1%}, at least {FEWEST_SECTIONS:.0%}")
    for name, rate in code_rates().items():
        print(f"{name} in 1,000 lines of code: {rate:.2f}, limit {MOST_IN_CODE[name]}")
    print(f"lines with a comment: {share_of_comments():.2%}, at least {FEWEST_COMMENTS:.1%}")
