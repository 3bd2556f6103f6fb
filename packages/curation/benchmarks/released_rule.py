"""Compare the rules of `metaclip2` and `tail_rule: nearest` with MetaCLIP 2's released code, by running it.

    uv run --with babel python packages/curation/benchmarks/released_rule.py --metaclip CHECKOUT

Calls the functions of `metaclip/curation/substr_matching.py` in a checkout of github.com/facebookresearch/MetaCLIP
(pyahocorasick is needed). Compares the spaces that entries need for each character of Unicode at their first and last
place and for random entries, the spaces that are put into texts, the t of random counts (`p_to_t` of
`metaclip/curation/curate.py`), and the matches of both in texts of all languages of Unicode's CLDR: lists of names of
territories, languages and scripts, joined and quoted as the language does, against all these names as entries. Writes
`released_rule.md` into `results/`.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import random
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import babel
import numpy as np
import pyarrow as pa
from babel import localedata
from babel.lists import format_list
from numpy.typing import NDArray

from vfm_curation.counts.probabilities import nearest_t_for_tail_share
from vfm_curation.match.automaton import Automaton, bounded
from vfm_curation.matching import spacing

RULE = "metaclip2"
NUM_ENTRIES, NUM_TEXTS, NUM_COUNTS = 200_000, 400, 10_000  # random entries, texts of each language, sets of counts
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def load(checkout: Path) -> ModuleType:
    """Import the released code."""
    file = checkout / "metaclip" / "curation" / "substr_matching.py"
    loader = SourceFileLoader("released", str(file))
    spec = importlib.util.spec_from_loader("released", loader)
    assert spec
    released = importlib.util.module_from_spec(spec)
    loader.exec_module(released)
    return released


def released_t(checkout: Path) -> Callable[[NDArray[np.int64], float], int]:
    """Extract the function that finds the t of a tail share. Its module cannot be imported."""
    tree = ast.parse((checkout / "metaclip" / "curation" / "curate.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "p_to_t"]
    names: dict[str, Any] = {"np": np}
    exec(compile(ast.Module(functions, []), "p_to_t", "exec"), names)
    found: Callable[[NDArray[np.int64], float], int] = names["p_to_t"]
    return found


def random_counts(rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the counts of up to 1,000 entries with a long tail, some of them 0."""
    counts: NDArray[np.int64] = (rng.pareto(0.7, rng.integers(1, 1000)) * 3).astype(np.int64)
    counts[0] += 1  # at least one match
    return counts


def num_different_entries(released: ModuleType, entries: Sequence[str]) -> int:
    """Count the entries that do not get the same spaces."""
    spaced = [text for _, text in released.get_spaced_metadata(list(entries))]
    return sum(theirs != bounded(entry, RULE) for entry, theirs in zip(entries, spaced, strict=True))


def random_entries(rng: random.Random) -> list[str]:
    """Draw entries of one to four characters, most of them from a few blocks with many marks."""
    blocks = [range(0x20, 0x7F), range(0xA0, 0x600), range(0xE00, 0x1100), range(0x2000, 0x3100), range(0xFF00, 0xFFF0)]
    entries = []
    for _ in range(NUM_ENTRIES):
        codes = [rng.choice(rng.choice([*blocks, range(0x4E00, 0x20000)])) for _ in range(rng.randint(1, 4))]
        entries.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000) or "x")
    return entries


def texts_of(locale: babel.Locale, names: Sequence[str], rng: random.Random) -> list[str]:
    """Write lists of names with the language's commas, conjunctions and quotation marks."""
    marks = ["", "", *(f" {mark} " for mark in "—–…·"), "!", "?", ".", "。", "、", "؟", "،"]
    texts = []
    for _ in range(NUM_TEXTS):
        text = format_list(rng.sample(names, rng.randint(1, 5)), locale=locale)
        if rng.random() < 0.4:
            before, after = rng.choice(["«»", "“”", "„“", "「」", "()", '""'])
            text = f"{before}{text}{after}"
        texts.append(f"{text}{rng.choice(marks)}{rng.choice(names)}")
    return texts


def matches_of(released: ModuleType, entries: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Match by the released automaton."""
    automaton = released.initialize_automaton(released.get_spaced_metadata(list(entries)))
    found = []
    for text in texts:
        found.append(sorted({entry for _, (entry, _) in automaton.iter(released.spacing(text))}))
    return found


def languages_row(released: ModuleType, rng: random.Random) -> tuple[str, tuple[int, int]]:
    """Match texts of all languages of CLDR by both rules.

    Returns:
        What was compared, and the number of texts and of texts with other matches.
    """
    languages = sorted({name for name in localedata.locale_identifiers() if "_" not in name and name != "root"})
    num_texts = num_matches = num_different = num_languages = 0
    for language in languages:
        locale = babel.Locale.parse(language)
        names = sorted({*locale.territories.values(), *locale.languages.values(), *locale.scripts.values()})
        if len(names) < 5:
            continue
        num_languages += 1
        texts = texts_of(locale, names, rng)
        ours = Automaton.build(names, semantics=RULE).match(pa.array(texts)).to_pylist()
        theirs = matches_of(released, names, texts)
        num_texts += len(texts)
        num_matches += sum(map(len, theirs))
        num_different += sum(one != other for one, other in zip(ours, theirs, strict=True))
    return f"texts in {num_languages} languages, with {num_matches:,} matches of names", (num_texts, num_different)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metaclip", type=Path, required=True, help="checkout of github.com/facebookresearch/MetaCLIP")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    released, rng = load(options.metaclip), random.Random(0)
    ends = [text for character in CHARACTERS for text in (f"{character}x", f"x{character}", character)]
    rows = {
        "entries with each character of Unicode at their first, last and only place": (
            len(ends), num_different_entries(released, ends)
        ),
        "random entries of one to four characters": (
            NUM_ENTRIES, num_different_entries(released, random_entries(rng))
        ),
        "texts with each character of Unicode": (
            len(CHARACTERS), sum(released.spacing(f"a{each}b") != spacing(f"a{each}b", RULE) for each in CHARACTERS)
        ),
    }  # fmt: skip
    their_t, draws = released_t(options.metaclip), np.random.default_rng(0)
    num_different = 0
    for _ in range(NUM_COUNTS):
        counts, share = random_counts(draws), draws.uniform(0, 0.5)
        num_different += max(1, their_t(counts, share)) != nearest_t_for_tail_share(counts, share)
    rows["t of a tail share by `tail_rule: nearest`, at least 1, of random counts"] = NUM_COUNTS, num_different
    what, compared = languages_row(released, rng)
    rows[what] = compared
    lines = [
        "`packages/curation/benchmarks/released_rule.py`: `semantics: metaclip2` and `tail_rule: nearest` beside the",
        "released code of MetaCLIP 2, both run on the same entries, texts and counts. Names are from CLDR (babel",
        f"{babel.__version__}).",
        "",
        "| compared | number | different |",
        "|---|--:|--:|",
        *(f"| {what} | {number:,} | {different:,} |" for what, (number, different) in rows.items()),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "released_rule.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
