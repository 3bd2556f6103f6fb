"""Words and pairs of words of a Wikipedia, counted from an XML dump or from plain text.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1; Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for a Wikipedia a language.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from vfm.stage import Context
from vfm_curation.entry_sources.base import TokenizerName
from vfm_curation.metadata.dump import OnRead, articles, unpacked
from vfm_curation.metadata.tokenizers import find_tokenizer
from vfm_curation.metadata.vocabulary import Vocabulary, count_words

TEXTS_A_TASK = 200  # articles or lines
MEGABYTE = 1e6
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class TextCounts:
    """Words and pairs of some texts, how many texts those were, and why others could not be read."""

    words: Counter[str]
    pairs: Counter[str]
    num_texts: int
    bad: list[str]


@dataclass(frozen=True)
class Corpus:
    """Files of running text in one language, unpacked as they are read where they end in `.bz2` or `.gz`."""

    files: tuple[Path, ...]
    wikitext: bool  # XML dumps, else plain text
    language: str = ""
    tokenizer: TokenizerName = "auto"

    def count(self, vocabulary: Vocabulary, ctx: Context, workers: int = 0) -> None:
        """Counts all texts. Whatever the number of processes, the counts are the same.

        Args:
            vocabulary: gets the counts.
            ctx: told the progress and the texts that cannot be read.
            workers: processes that strip and split; less than 2: this one.

        Raises:
            UserError: a file ends early, or is not what its name says.
        """
        total, done, num_texts, begun = sum(file.stat().st_size for file in self.files), 0, 0, time.monotonic()
        for file in self.files:
            read = 0

            def on_read(place: int) -> None:
                nonlocal read
                read = place

            texts: Iterator[str | bytes] = articles(file, on_read) if self.wikitext else lines(file, on_read)
            for counts in in_order(self.count_texts, _tasks(texts), workers):
                vocabulary.add_counts(counts.words, counts.pairs)
                num_texts += counts.num_texts
                for reason in counts.bad:
                    ctx.skip(reason, str(file))
                rate = round(num_texts / max(1e-9, time.monotonic() - begun), 1)
                shown = {"pages": num_texts, "pages_per_second": rate, "words": vocabulary.num_words}
                ctx.progress(round((done + read) / MEGABYTE), round(total / MEGABYTE), "MB", **shown)
            done += file.stat().st_size

    def count_texts(self, texts: list[str | bytes]) -> TextCounts:
        """Counts some texts: articles' wikitext, or lines of plain text as bytes."""
        split = find_tokenizer(self.tokenizer, self.language, prose=True)
        plain, bad = [], []
        for text in texts:
            try:
                plain.append(plain_text(text) if isinstance(text, str) else text.decode())
            except UnicodeDecodeError:
                bad.append("invalid_utf8")
        return TextCounts(*count_words(map(split, plain)), num_texts=len(texts), bad=bad)


def plain_text(wikitext: str) -> str:
    """An article's text without templates, references, files and categories, links as their labels."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag, Wikilink

    code = mwparserfromhell.parse(wikitext)
    for node in code.filter(forcetype=(Tag, Wikilink)):
        if isinstance(node, Tag):
            if str(node.tag).lower() == "ref":
                node.contents = ""
        elif re.match(r"[^:\s]+:\S", str(node.title)):  # File:, Category:, de:, in whatever language
            node.text = ""
    return str(code.strip_code())


def lines(file: Path, on_read: OnRead | None = None) -> Iterator[bytes]:
    """Lines of plain text, `.gz` and `.bz2` unpacked; the lines of WikiExtractor that begin and end an article go."""
    with unpacked(file) as (stream, tell):
        for line in stream:
            if not line.startswith((b"<doc ", b"</doc>")):
                yield line
            if on_read:
                on_read(tell())


def _tasks(texts: Iterator[T]) -> Iterator[list[T]]:
    while task := list(islice(texts, TEXTS_A_TASK)):
        yield task


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` over processes, in the order of the items, with two items a process under way."""
    if workers < 2:
        yield from map(function, items)
        return
    # Spawned, not forked: a fork of a process with running threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = deque[Future[R]]()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
