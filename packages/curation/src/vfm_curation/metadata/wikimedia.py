"""Read Wikimedia's XML dumps, their plain text, and hourly page views as streams.

Neither a file nor its XML tree is ever whole in memory.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1. Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for mobile views and the fraction of titles.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

from vfm.plugin import UserError

ARTICLES = "0"  # the namespace of articles
MAX_LINE = 16 << 20  # bytes of a line of text, as in the tables of core
BinaryStream = bz2.BZ2File | gzip.GzipFile | io.BufferedReader
OnRead = Callable[[int], None]  # called with the number of bytes of the file that have been read


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[BinaryStream, Callable[[], int]]]:
    """Open a file and decompress `.bz2` and `.gz` as they are read. Also yield a function that counts the bytes read.

    Raises:
        UserError: If the file ends early or is not what its name says.
    """
    with path.open("rb") as raw:
        try:
            if path.suffix == ".bz2":
                yield bz2.BZ2File(raw), raw.tell
            elif path.suffix == ".gz":
                yield gzip.GzipFile(fileobj=raw), raw.tell
            else:
                yield raw, raw.tell
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: {error}") from None
        except OSError as error:
            if error.errno is None:  # raised by bz2 for broken data
                raise UserError(f"{path}: {error}") from None
            raise


def articles(path: Path, on_read: OnRead | None = None) -> Iterator[str]:
    """Yield the wikitext of each article of a dump (`...-pages-articles.xml.bz2`), without redirects and other pages.

    Args:
        path: `.xml`, `.xml.bz2` or `.xml.gz`, in MediaWiki's export format.
        on_read: Called with the bytes of the file that have been read, after each page.

    Raises:
        UserError: If the file ends early, or is not XML or not a dump.
    """
    with unpacked(path) as (stream, tell):
        try:
            events = ElementTree.iterparse(stream, events=("start", "end"))
            _, root = next(events)
            if _local(root) != "mediawiki":
                raise UserError(f"{path}: expected a dump with the root <mediawiki>, got <{_local(root)}>")
            for event, element in events:
                if event == "start" or _local(element) != "page":
                    continue
                parts = {_local(part): part for part in element.iter()}
                if "ns" not in parts:
                    raise UserError(f"{path}: a page has no <ns>; MediaWiki's formats before 0.6 are not supported")
                # The text of the main slot. Other contents of a revision, such as data about a file, have another path.
                text = element.find("{*}revision/{*}text")
                if parts["ns"].text == ARTICLES and "redirect" not in parts and text is not None:
                    yield text.text or ""
                root.clear()  # else the tree of the whole dump would grow in memory
                if on_read:
                    on_read(tell())
        except ElementTree.ParseError as error:
            raise UserError(f"{path}: not readable as XML: {error}") from None


def _local(element: ElementTree.Element) -> str:
    """Strip the namespace from the name of an element."""
    return element.tag.rsplit("}", 1)[-1]


def lines(file: Path, on_read: OnRead | None = None) -> Iterator[bytes]:
    """Yield lines of plain text, except the lines of WikiExtractor that begin and end an article."""
    with unpacked(file) as (stream, tell):
        for line in _bounded(stream, file):
            if not line.startswith((b"<doc ", b"</doc>")):
                yield line
            if on_read:
                on_read(tell())


def _bounded(stream: BinaryStream, file: Path) -> Iterator[bytes]:
    """Yield the lines of a file.

    Raises:
        UserError: If a line is too long for the memory: a few MB of a compressed file may be a line of GB.
    """
    for number in count(1):
        line = stream.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise UserError(f"{file}: line {number} is longer than {MAX_LINE >> 20} MiB; expected lines of text")
        yield line


def views_of_hour(
    file: Path, domain: str, *, mobile: bool = False, on_bad: Callable[[str, str], None] | None = None
) -> Counter[str]:
    """Count the views of each title in one file.

    Titles with a colon belong to other namespaces and are left out. A line is `domain title views bytes`, such as `en
    Main_Page 242 0`. The domain `en.m` counts mobile readers.

    Args:
        file: Hourly file of Wikimedia, `pageviews-20180419-000000.gz`, or decompressed.
        domain: Code of the Wikipedia, such as `en`.
        mobile: Count views of the mobile site too.
        on_bad: Called with (reason, where) for each line that cannot be used.

    Raises:
        UserError: If the file ends early or is not what its name says, or a line is too long.
    """
    views: Counter[str] = Counter()
    domains = {domain.encode(), *([f"{domain}.m".encode()] if mobile else [])}
    with unpacked(file) as (stream, _):
        for number, line in enumerate(_bounded(stream, file), 1):
            if line.split(b" ", 1)[0] not in domains:
                continue
            try:
                _, title, number_of_views, _ = line.decode().split(" ")
                if ":" not in title:
                    views[title.replace("_", " ")] += int(number_of_views)
            except ValueError as error:  # invalid UTF-8, too few columns, or a count that is not a number
                if isinstance(error, UnicodeDecodeError):
                    reason = "invalid_utf8"
                else:
                    reason = "broken_line"
                if on_bad:
                    on_bad(reason, f"{file}:{number}")
    return views
