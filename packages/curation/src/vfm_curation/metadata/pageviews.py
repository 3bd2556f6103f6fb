"""Titles of a Wikipedia by their page views, from the hourly files that Wikimedia gives away.

A line of such a file is `domain title views bytes`: `en Main_Page 242 0`; `en.m` counts mobile readers.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1; Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for mobile views and the share of titles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vfm_curation.metadata.dump import unpacked


def views_of_hour(
    file: Path, domain: str, *, mobile: bool = False, on_bad: Callable[[str, str], None] | None = None
) -> Counter[str]:
    """Views of each title in one file; titles with a colon, which stand in other namespaces, are left out.

    Args:
        file: as Wikimedia names it, `pageviews-20180419-000000.gz`, or unpacked.
        domain: the code of the Wikipedia, such as `en`.
        mobile: whether views of the mobile site count too.
        on_bad: told (reason, where) of each line that cannot be used.

    Raises:
        UserError: the file ends early or is not what its name says.
    """
    views: Counter[str] = Counter()
    domains = {domain.encode(), *([f"{domain}.m".encode()] if mobile else [])}
    with unpacked(file) as (stream, _):
        for number, line in enumerate(stream, 1):
            if line.partition(b" ")[0] not in domains:
                continue
            try:
                _, title, count, _ = line.decode().split(" ")
                if ":" not in title:
                    views[title.replace("_", " ")] += int(count)
            except ValueError as error:  # of bytes that are no UTF-8, of too few columns, of a count that is no number
                reason = "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "broken_line"
                if on_bad:
                    on_bad(reason, f"{file}:{number}")
    return views
