"""Words and pairs of words of a Wikipedia, counted from an XML dump or from plain text.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1; Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for a Wikipedia a language.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from vfm.stage import Context
from vfm_curation.engine import in_order
from vfm_curation.entry_sources.base import TokenizerName
from vfm_curation.metadata.dump import OnRead, articles, unpacked
from vfm_curation.metadata.tokenizers import find_tokenizer
from vfm_curation.metadata.vocabulary import Vocabulary, count_words
from vfm_curation.shard_files import made_from

TEXTS_A_TASK = 200  # articles or lines
MEGABYTE = 1e6
VERSION = 1  # raised where the same files give other counts
T = TypeVar("T")


@dataclass(frozen=True)
class TextCounts:
    """Words and pairs of some texts, how many texts those were, and why others could not be read."""

    words: Counter[str]
    pairs: Counter[str]
    num_texts: int
    bad: list[str]


@dataclass
class Progress:
    """How far a corpus has been counted: texts of the file at hand, whose number that is, and of all files."""

    file: int = 0
    texts: int = 0
    num_texts: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # texts that could not be read, by reason


@dataclass(frozen=True)
class Corpus:
    """Files of running text in one language, unpacked as they are read where they end in `.bz2` or `.gz`."""

    files: tuple[Path, ...]
    wikitext: bool  # XML dumps, else plain text
    language: str = ""
    tokenizer: TokenizerName = "auto"

    @property
    def made(self) -> str:
        """The name of what its counts are made from."""
        stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return made_from(stats, self.wikitext, self.language, self.tokenizer, VERSION)

    def count(self, vocabulary: Vocabulary, ctx: Context, workers: int = 0) -> None:
        """Counts all texts. Whatever the number of processes, the counts are the same.

        Whenever counts go to disk the progress does too: a vocabulary that resumes goes on from there, and what was
        counted is only read over, not stripped and split again.

        Args:
            vocabulary: gets the counts; one that resumes needs a folder for this corpus alone, named `made` or so.
            ctx: told the progress and the texts that cannot be read.
            workers: processes that strip and split; less than 2: this one.

        Raises:
            UserError: a file ends early, or is not what its name says.
        """
        at, begun = Progress(**vocabulary.progress), time.monotonic()
        sizes, before, on_disk = [file.stat().st_size for file in self.files], at.num_texts, vocabulary.num_files
        ctx.bad.update(at.bad)
        for file in self.files[at.file :]:
            read = 0

            def on_read(place: int) -> None:
                nonlocal read
                read = place

            texts: Iterator[str | bytes] = articles(file, on_read) if self.wikitext else lines(file, on_read)
            for counts in in_order(self.count_texts, _tasks(islice(texts, at.texts, None)), workers):
                vocabulary.add_counts(counts.words, counts.pairs)
                at.texts, at.num_texts = at.texts + counts.num_texts, at.num_texts + counts.num_texts
                for reason in counts.bad:
                    ctx.skip(reason, str(file))
                    at.bad[reason] = at.bad.get(reason, 0) + 1
                if vocabulary.num_files > on_disk:
                    vocabulary.save(vars(at))
                    on_disk = vocabulary.num_files
                rate = round((at.num_texts - before) / max(1e-9, time.monotonic() - begun), 1)
                shown = {"pages": at.num_texts, "pages_per_second": rate, "words": vocabulary.num_words}
                done = sum(sizes[: at.file]) + read
                ctx.progress(round(done / MEGABYTE), round(sum(sizes) / MEGABYTE), "MB", **shown)
            at.file, at.texts = at.file + 1, 0

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
