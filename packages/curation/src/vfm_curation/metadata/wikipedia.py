"""Count words and bigrams of a Wikipedia from an XML dump or from plain text.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1. Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for one Wikipedia for each language.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TypeVar

from vfm.plugin import Context
from vfm_curation.engine import map_in_order
from vfm_curation.metadata.tokenizer_parts import AutoTokenizer, Tokenizer
from vfm_curation.metadata.vocabulary import Vocabulary, count_words
from vfm_curation.metadata.wikimedia import articles, lines
from vfm_curation.shard_files import made_from

TEXTS_A_TASK = 200  # articles or lines
MEGABYTE = 1e6  # of the progress
VERSION = 1  # increase when the same files give other counts
T = TypeVar("T")


@dataclass(frozen=True)
class TextCounts:
    """Words and bigrams of some texts, the number of texts, and the reasons why others were unreadable."""

    words: Counter[str]
    pairs: Counter[str]
    num_texts: int
    bad: list[str]


@dataclass
class Progress:
    """Progress through a corpus.

    It has the index of the current file, the number of its texts, and the number of texts of all files.
    """

    file: int = 0
    texts: int = 0
    num_texts: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # texts that could not be read, by reason


@dataclass(frozen=True)
class Corpus:
    """Files of running text in one language. `.bz2` and `.gz` are decompressed as they are read."""

    files: tuple[Path, ...]
    wikitext: bool  # XML dumps, else plain text
    language: str = ""
    tokenizer: Tokenizer = field(default_factory=AutoTokenizer)

    @property
    def source_hash(self) -> str:
        """Hash of the files and settings that determine the counts."""
        stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return made_from(stats, self.wikitext, self.language, self.tokenizer.named, VERSION)

    def count(self, vocabulary: Vocabulary, ctx: Context, workers: int = 0) -> None:
        """Count all texts. The counts do not depend on the number of processes.

        Whenever counts are written to disk, so is the progress. A vocabulary that resumes continues from there: texts
        that were counted are read again, but not stripped and split.

        Args:
            vocabulary: Receives the counts. To resume, it needs a separate folder for this corpus, such as one named
                by `source_hash`.
            ctx: Receives the progress and the texts that cannot be read.
            workers: Processes that strip and split texts. With fewer than 2, this process does.

        Raises:
            UserError: If a file ends early, or is not what its name says.
        """
        at = Progress(**vocabulary.progress)
        begun = time.monotonic()
        sizes = [file.stat().st_size for file in self.files]
        before = at.num_texts
        on_disk = vocabulary.num_files
        ctx.bad.update(at.bad)
        for file in self.files[at.file :]:
            read = 0

            def on_read(position: int) -> None:
                nonlocal read
                read = position

            # Texts that an interrupted run has counted are skipped.
            texts: Iterator[str | bytes] = articles(file, on_read) if self.wikitext else lines(file, on_read)
            for counts in map_in_order(self.count_texts, _tasks(islice(texts, at.texts, None)), workers):
                vocabulary.add_counts(counts.words, counts.pairs)
                at.texts, at.num_texts = at.texts + counts.num_texts, at.num_texts + counts.num_texts
                for reason in counts.bad:
                    ctx.skip(reason, str(file))
                    at.bad[reason] = at.bad.get(reason, 0) + 1
                # The progress is saved together with each file of counts, so that both always agree.
                if vocabulary.num_files > on_disk:
                    vocabulary.save(vars(at))
                    on_disk = vocabulary.num_files
                rate = round((at.num_texts - before) / max(1e-9, time.monotonic() - begun), 1)
                shown = {"pages": at.num_texts, "pages_per_second": rate, "words": vocabulary.num_words}
                done = sum(sizes[: at.file]) + read
                ctx.progress(round(done / MEGABYTE), round(sum(sizes) / MEGABYTE), "MB", **shown)
            at.file = at.file + 1
            at.texts = 0

    def count_texts(self, texts: list[str | bytes]) -> TextCounts:
        """Count the words of some texts.

        Args:
            texts: Articles' wikitext, or lines of plain text as bytes.
        """
        split = self.tokenizer.build(self.language, prose=True)
        plain = []
        bad = []
        for text in texts:
            try:
                plain.append(plain_text(text) if isinstance(text, str) else text.decode())
            except UnicodeDecodeError:
                bad.append("invalid_utf8")
        return TextCounts(*count_words(map(split, plain)), num_texts=len(texts), bad=bad)


def check_wikitext_parser() -> None:
    """Check that the extra `wikipedia` is installed.

    Raises:
        ModuleNotFoundError: If it is not.
    """
    import_module("mwparserfromhell")


def plain_text(wikitext: str) -> str:
    """Convert wikitext to plain text.

    Templates, references, files and categories are removed. Links become their labels.
    """
    import mwparserfromhell  # the extra `wikipedia`
    from mwparserfromhell.nodes import Tag, Wikilink

    code = mwparserfromhell.parse(wikitext)
    for node in code.filter(forcetype=(Tag, Wikilink)):
        if isinstance(node, Tag):
            if str(node.tag).lower() == "ref":
                node.contents = ""
        elif re.match(r"[^:\s]+:\S", str(node.title)):  # File:, Category:, de:, in whatever language
            node.text = ""
    return str(code.strip_code())


def _tasks(texts: Iterator[T]) -> Iterator[list[T]]:
    while task := list(islice(texts, TEXTS_A_TASK)):
        yield task
