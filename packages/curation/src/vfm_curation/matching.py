"""Find the metadata entries that a caption contains: MetaCLIP's exact matching.

An entry matches if it occurs in the text between two spaces, after spaces have been put around seven ASCII marks and
tabs and line ends replaced by spaces. Nothing else is cleaned: matching is case-sensitive, quotes and brackets are part
of their words, and a comma followed by a space leaves two spaces, so that no entry of several words matches across it.

`match_plain` is this definition. `Matcher` returns the same result from a trie over tokens: a text that is split at
single spaces, with empty tokens, contains an entry exactly if the entry's own pieces are consecutive tokens of it. Its
time depends on the length of the text, not on the number of entries. `TokenTable` is the compiled version, twenty times
as fast. `Automaton` is for languages written without spaces between words.

`semantics: metaclip` is the rule of MetaCLIP's paper. `match.automaton` extends it to languages without spaces.
`semantics: metaclip2` is the rule of MetaCLIP 2's released code in every language: an entry needs no space on a side
where it ends in punctuation or in a script without spaces, so that only with `metaclip2` `x(dog)y` contains `(dog)`.
`semantics: fixed` also puts spaces around full-width marks and double quotes of all kinds, and treats the ideographic
and the no-break space as spaces:

    text          entry   metaclip   fixed
    cat，dog      cat     no         yes
    a “red” car   red     no         yes
    my "dog"      dog     no         yes
    a dog         dog     yes        yes         (a no-break space between: no, yes)
    the dog's     dog     no         no          the apostrophe, brackets and hyphens are part of their words

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.2 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vfm.plugin import UserError
from vfm_curation.runtime import Semantics

__all__ = [
    "FIXED_BLANKS", "FIXED_MARKS", "MARKS", "Matcher", "Semantics", "between_spaces", "dead_entries", "dead_reason",
    "match_plain", "spacing", "tokenize",
]  # fmt: skip

MARKS = ",.;:?!`"
BLANKS = "\t\n\r"
FIXED_MARKS = "，．；：？！｀、。｡､" + '"＂“”„‟«»‹›「」『』｢｣《》〈〉〝〞'
FIXED_BLANKS = "\u00a0\u3000"


def spacing(text: str, semantics: Semantics = "metaclip") -> str:
    """Add a space at both ends of a text and around each mark, such as `,.;:?!` and the backtick."""
    text = f" {text} "
    for mark in MARKS + FIXED_MARKS if semantics == "fixed" else MARKS:
        text = text.replace(mark, f" {mark} ")
    for blank in BLANKS + FIXED_BLANKS if semantics == "fixed" else BLANKS:
        text = text.replace(blank, " ")
    return text


def tokenize(text: str, semantics: Semantics = "metaclip") -> list[str]:
    """Split a text into tokens. Empty ones are kept: two spaces in a row have an empty token between them."""
    return spacing(text, semantics).split(" ")[1:-1]


def between_spaces(entry: str) -> str:
    """Build the string that a text with added spaces must contain for an entry to match."""
    return f" {entry} "


def match_plain(
    text: str,
    entries: Iterable[str],
    semantics: Semantics = "metaclip",
    bounded: Callable[[str], str] = between_spaces,
) -> list[int]:
    """Find the ids of the entries in a text by one substring test for each. All matchers must give this result."""
    spaced = spacing(text, semantics)
    return [index for index, entry in enumerate(entries) if bounded(entry) in spaced]


class _Node:
    """Node of the trie.

    It has the id of the entry that ends here (-1: none), and the tokens that may follow.
    """

    __slots__ = ("children", "entry")

    def __init__(self) -> None:
        self.entry = -1
        self.children: dict[str, _Node] = {}


class Matcher:
    """Finds all entries in a text, overlapping and nested ones included.

    It walks a trie of tokens.

    Args:
        entries: The metadata. An entry's id is its index.
        semantics: How texts are split.

    Raises:
        UserError: If there are no entries, or an entry occurs twice. Its id would be ambiguous.
    """

    def __init__(self, entries: Sequence[str], semantics: Semantics = "metaclip") -> None:
        if not entries:
            raise UserError("the metadata has no entries to match against")
        self.num_entries = len(entries)
        self.semantics = semantics
        self._root = _Node()
        for index, entry in enumerate(entries):
            node = self._root
            for token in entry.split(" "):
                node = node.children.setdefault(token, _Node())
            if node.entry >= 0:
                raise UserError(f"metadata entry {entry!r} occurs twice, at {node.entry} and at {index}")
            node.entry = index

    def match(self, text: str) -> list[int]:
        """Find the ids of the entries in a text, ascending and distinct."""
        tokens = tokenize(text, self.semantics)
        starts = self._root.children
        matched_ids: set[int] = set()
        for start, token in enumerate(tokens, 1):
            node = starts.get(token)
            while node is not None:
                if node.entry >= 0:
                    matched_ids.add(node.entry)
                if not node.children or start == len(tokens):
                    break
                node = node.children.get(tokens[start])
                start += 1
        return sorted(matched_ids)


def dead_reason(entry: str, semantics: Semantics = "metaclip") -> str | None:
    """Explain why no text can contain an entry.

    Texts are split at marks and blanks, entries are not: `U.S.` is a token that no text has.

    Returns:
        The reason, or None if a text can contain it.
    """
    pieces = entry.split(" ")
    marks = MARKS + FIXED_MARKS if semantics == "fixed" else MARKS
    if not set(BLANKS).isdisjoint(entry):
        return "contains a tab or a line end"
    if semantics == "fixed" and not set(FIXED_BLANKS).isdisjoint(entry):
        return "contains a no-break or an ideographic space; texts have a plain space there"
    for piece in pieces:
        glued = next((mark for mark in marks if mark in piece and piece != mark), None)
        if glued:
            return f"{glued!r} is next to a letter or another mark; texts are split there"
    after_mark = False
    for piece in pieces:
        is_mark = piece != "" and piece in marks
        if is_mark and after_mark:
            return "two marks with one space between them; texts have two spaces there"
        after_mark = is_mark
    return None


def dead_entries(entries: Iterable[str], semantics: Semantics = "metaclip") -> dict[int, str]:
    """Find the entries that can never match, as id -> reason."""
    reasons = ((index, dead_reason(entry, semantics)) for index, entry in enumerate(entries))
    return {index: reason for index, reason in reasons if reason}
