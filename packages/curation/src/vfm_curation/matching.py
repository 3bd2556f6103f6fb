"""Which metadata entries a caption contains: MetaCLIP's exact matching.

An entry matches where it stands in the text between two spaces, after seven ASCII marks have been set apart and tabs
and line ends turned into spaces. Nothing else is cleaned: case counts, quotes and brackets stick to their words, and a
comma followed by a space leaves two spaces, so that no entry of several words reaches across it.

`match_plain` says just that. `Matcher` gives the same answer from a trie over tokens: a text split at single spaces,
empty tokens kept, holds an entry exactly where the entry's own pieces are consecutive tokens of it. It is the
time of the text that counts, not the number of entries. `TokenTable` is the same compiled, twenty times as fast;
`Automaton` is for languages that write no space between words.

`semantics: metaclip` is the paper's. `semantics: fixed` also sets apart full-width marks and double quotes of all
kinds, and takes the ideographic and the no-break space as spaces:

    text          entry   metaclip   fixed
    cat，dog      cat     no         yes
    a “red” car   red     no         yes
    my "dog"      dog     no         yes
    a dog         dog     yes        yes         (a no-break space between: no, yes)
    the dog's     dog     no         no          the apostrophe, brackets and hyphens stay with their words

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.2 and Algorithm 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from vfm.config import UserError

Semantics = Literal["metaclip", "fixed"]
MARKS = ",.;:?!`"
BLANKS = "\t\n\r"
FIXED_MARKS = "，．；：？！｀、。｡､" + '"＂“”„‟«»‹›「」『』｢｣《》〈〉〝〞'
FIXED_BLANKS = "\u00a0\u3000"


def spacing(text: str, semantics: Semantics = "metaclip") -> str:
    """The text as matching sees it: a space at both ends and around each mark, such as `,.;:?!` and the backtick."""
    text = f" {text} "
    for mark in MARKS if semantics == "metaclip" else MARKS + FIXED_MARKS:
        text = text.replace(mark, f" {mark} ")
    for blank in BLANKS if semantics == "metaclip" else BLANKS + FIXED_BLANKS:
        text = text.replace(blank, " ")
    return text


def tokenize(text: str, semantics: Semantics = "metaclip") -> list[str]:
    """Tokens of a text, empty ones kept: two spaces in a row have an empty token between them."""
    return spacing(text, semantics).split(" ")[1:-1]


def between_spaces(entry: str) -> str:
    """What must stand in the spaced text for an entry to match."""
    return f" {entry} "


def match_plain(
    text: str,
    entries: Iterable[str],
    semantics: Semantics = "metaclip",
    wanted: Callable[[str], str] = between_spaces,
) -> list[int]:
    """Ids of the entries in a text, by the definition: one substring test an entry. The twin of all matchers."""
    spaced = spacing(text, semantics)
    return [index for index, entry in enumerate(entries) if wanted(entry) in spaced]


class _Node:
    """A run of tokens with which an entry begins: the entry that ends here (-1: none) and the tokens that go on."""

    __slots__ = ("children", "entry")

    def __init__(self) -> None:
        self.entry = -1
        self.children: dict[str, _Node] = {}


class Matcher:
    """Finds all entries in a text by walking a trie of tokens; overlapping and nested entries are all found.

    Args:
        entries: the metadata; an entry's id is its place here.
        semantics: how texts are cut.

    Raises:
        UserError: there are no entries, or one stands twice (its id would be ambiguous).
    """

    def __init__(self, entries: Sequence[str], semantics: Semantics = "metaclip") -> None:
        if not entries:
            raise UserError("the metadata holds no entries: there is nothing to match against")
        self.num_entries, self.semantics = len(entries), semantics
        self._root = _Node()
        for index, entry in enumerate(entries):
            node = self._root
            for token in entry.split(" "):
                node = node.children.setdefault(token, _Node())
            if node.entry >= 0:
                raise UserError(f"metadata entry {entry!r} stands twice, at {node.entry} and at {index}")
            node.entry = index

    def match(self, text: str) -> list[int]:
        """Ids of the entries in a text, ascending, each once however often it occurs."""
        tokens = tokenize(text, self.semantics)
        starts = self._root.children
        found: set[int] = set()
        for start, token in enumerate(tokens, 1):
            node = starts.get(token)
            while node is not None:
                if node.entry >= 0:
                    found.add(node.entry)
                if not node.children or start == len(tokens):
                    break
                node = node.children.get(tokens[start])
                start += 1
        return sorted(found)


def dead_reason(entry: str, semantics: Semantics = "metaclip") -> str | None:
    """Why no text can ever contain this entry, or None where one can.

    Texts are split at marks and blanks, entries are not: `U.S.` waits for a token that no text has.
    """
    pieces, marks = entry.split(" "), MARKS if semantics == "metaclip" else MARKS + FIXED_MARKS
    if any(blank in entry for blank in BLANKS):
        return "holds a tab or a line end"
    if semantics == "fixed" and any(blank in entry for blank in FIXED_BLANKS):
        return "holds a no-break or an ideographic space; texts have a plain one there"
    for piece in pieces:
        glued = next((mark for mark in marks if mark in piece and piece != mark), None)
        if glued:
            return f"{glued!r} is glued to letters or to another mark; texts are split there"
    apart = [piece != "" and piece in marks for piece in pieces]
    if any(left and right for left, right in itertools.pairwise(apart)):
        return "two marks with one space between; texts have two there"
    return None


def dead_entries(entries: Iterable[str], semantics: Semantics = "metaclip") -> dict[int, str]:
    """The entries that can never match, as id -> reason."""
    reasons = ((index, dead_reason(entry, semantics)) for index, entry in enumerate(entries))
    return {index: reason for index, reason in reasons if reason}
