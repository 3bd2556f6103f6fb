"""Curate captions from Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.api.paths import PATHS, AnyPath, as_place
from vfm.api.results import Results
from vfm.api.runs import Run, run
from vfm.base import UserError, drop_none
from vfm.interfaces import Artifact
from vfm.storage.publishing import new_file

RECIPE = "curate"
SUBSET, EXPORT = "curated", "exported"  # stages of the recipe
PAIRS = "pairs.parquet"  # one of the exported files
CAPTIONS = "captions"  # folder in the store for captions that were given as a list


@dataclass(frozen=True, repr=False)
class Curation(Results):
    """Curated captions.

    Attributes:
        run: The run of the recipe `curate`, with its report. `run["curated"]` is the subset, to train on.
    """

    run: Run

    @property
    def subset(self) -> Artifact:
        """The curated subset, a view of the data with the probability of each text."""
        return self.run[SUBSET]

    @property
    def kept(self) -> list[str]:
        """The kept texts, in the order of the data."""
        texts: list[str] = self._pairs.filter(self._pairs["kept"])["text"].to_pylist()
        return texts

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{len(self.kept):,} of {len(self._pairs):,} matched texts kept; report: {self.run.page}"

    def table(self) -> Any:
        """Build an Arrow table with a row for each text that has a matching entry.

        The columns are text, entries, probability, kept, reason and language. Further columns join a row to the data:
        uid, key, url, shard, row and text_index.
        """
        first = ["text", "entries", "probability", "kept", "reason", "language"]
        others = [name for name in self._pairs.column_names if name not in first]
        return self._pairs.select([*first, *others])

    def preview(self) -> Any:
        """Select the columns that are displayed."""
        return self._pairs.select(["text", "entries", "probability", "kept"])

    @cached_property
    def _pairs(self) -> Any:
        return pq.read_table(self.run[EXPORT].path / PAIRS, page_checksum_verification=True)


def curate(
    captions: AnyPath | Iterable[str],
    *,
    tail_share: float | None = None,
    t: float | None = None,
    target_size: int | None = None,
    texts: Mapping[str, str] | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as the option of `vfm run`)
    store: AnyPath = "store",
    progress: bool = True,
) -> Curation:
    """Curate captions as MetaCLIP does, by matching them with entries and balancing the long tail of the entries.

    It runs the shipped recipe `curate`. Finished stages are cached.

    Args:
        captions: A list of captions, or a path in any format of `data.pairs`: tars, a folder, or a table, with or
            without images. A list is saved in the folder `captions` of the store.
        tail_share: Fraction of all matches that belong to the rarest entries. These entries keep all their texts. The
            default is 0.06.
        t: Number of texts above which the texts of an entry are sampled. Replaces `tail_share`.
        target_size: Number of texts to keep. Replaces `tail_share`.
        texts: Key or column of the captions in the data by language: `{"en": "json.en"}`.
        set: Values by `NAME.FIELD` that override the recipe: `{"entries.min_count": 2}`.
        store: Folder of artifacts and runs.
        progress: Show progress bars and messages.

    Returns:
        The kept captions, and a table of all matched captions with their entries and probabilities.

    Raises:
        UserError: If the captions cannot be read, nothing matches, or vfm-curation is not installed.
    """
    if isinstance(captions, PATHS):
        path = as_place(captions)
    else:
        path = str(_stored(captions, Path(store)))
    settings: dict[str, Any] = {"pool.path": path}
    if texts:
        settings["pool.texts"] = dict(texts)
    sizes = {"tail_share": tail_share, "t": t, "target_size": target_size}
    if drop_none(sizes):
        settings |= {f"{SUBSET}.{name}": value for name, value in sizes.items()}
    settings |= set or {}
    return Curation(run(RECIPE, set=settings, store=store, progress=progress))


def _stored(captions: Iterable[str], store: Path) -> Path:
    """Write captions into the store, to a file named by their hash.

    Raises:
        UserError: If there are no captions, or one is not a string or cannot be encoded as UTF-8.
    """
    if hasattr(captions, "columns"):
        raise UserError("captions: expected one column of texts, got a table; give table['caption'], for example")
    if not isinstance(captions, Iterable):
        raise UserError(f"captions: expected a list of texts or a path, got a {type(captions).__name__}")
    listed = list(captions)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise UserError(f"captions[{index}]: expected a text, got a {type(text).__name__}")
    if not listed:
        raise UserError("captions: expected at least one text, got none")
    for index, text in enumerate(listed):
        if not _is_unicode(text):
            raise UserError(f"captions[{index}]: expected Unicode, got half a surrogate pair: {text!a:.60}")
    digest = hashlib.sha256("\0".join(listed).encode()).hexdigest()
    file = store / CAPTIONS / f"{digest[:16]}.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as stream:
            table = pa.table({"caption": pa.array(listed, pa.string())})
            pq.write_table(table, stream, write_page_checksum=True)
    return file


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
