"""Articles of a Wikipedia XML dump, read as a stream: neither the file nor the tree is ever whole in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from vfm.config import UserError

ARTICLES = "0"  # the namespace of articles
BinaryStream = bz2.BZ2File | gzip.GzipFile | io.BufferedReader
OnRead = Callable[[int], None]  # told how many bytes of the file have been read


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[BinaryStream, Callable[[], int]]]:
    """A file's bytes, `.bz2` and `.gz` unpacked as they are read, and how far the file itself has been read.

    Raises:
        UserError: the file ends early or is not what its name says.
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
            if error.errno is None:  # bz2's word for broken data
                raise UserError(f"{path}: {error}") from None
            raise


def articles(path: Path, on_read: OnRead | None = None) -> Iterator[str]:
    """The wikitext of each article of a dump (`...-pages-articles.xml.bz2`); redirects and other pages are left out.

    Args:
        path: `.xml`, `.xml.bz2` or `.xml.gz`, in MediaWiki's export format.
        on_read: told the bytes of the file that have been read, after each page.

    Raises:
        UserError: the file ends early, or is no XML or no dump.
    """
    with unpacked(path) as (stream, tell):
        try:
            events = ElementTree.iterparse(stream, events=("start", "end"))
            _, root = next(events)
            if _local(root) != "mediawiki":
                raise UserError(f"{path}: no dump of a wiki: its root is <{_local(root)}>, not <mediawiki>")
            for event, element in events:
                if event == "start" or _local(element) != "page":
                    continue
                parts = {_local(part): part for part in element.iter()}
                if "ns" not in parts:
                    raise UserError(f"{path}: a page without <ns>; dumps before MediaWiki's format 0.6 are not read")
                if parts["ns"].text == ARTICLES and "redirect" not in parts and "text" in parts:
                    yield parts["text"].text or ""
                root.clear()
                if on_read:
                    on_read(tell())
        except ElementTree.ParseError as error:
            raise UserError(f"{path}: not readable as XML: {error}") from None


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
