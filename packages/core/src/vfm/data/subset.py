"""A curated view of a pool: the texts of each sample that were kept, as `subset.parquet` in the artifact's folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.config import UserError
from vfm.data.draws import Keys, drawn, text_keys
from vfm.data.sample import Sample
from vfm.store_files import open_parquet_file, reading

SUBSET_FILE = "subset.parquet"
SHARDS_IN_MEMORY = 1024  # about a quarter of a MB each with 10,000 texts


def subset_schema() -> Any:
    """Return the schema of `subset.parquet`: one row for each text that matched or passed, kept or not.

    Rows are sorted by (shard, row, language, text_index). shard and row locate the sample in the pool's index, uid
    identifies it, language and text_index select one of its texts, probability is the chance with which the text is
    kept, and kept is the result of the draw: a fixed subset uses the kept rows, `sampler: balanced` draws again from
    all rows.
    """
    return pa.schema(
        {
            "shard": pa.int32(),
            "row": pa.int32(),
            "uid": pa.string(),
            "language": pa.string(),
            "text_index": pa.int32(),
            "probability": pa.float32(),
            "kept": pa.bool_(),
        }
    )


@dataclass(frozen=True)
class TextDraw:
    """Settings of the draw with which each epoch chooses its texts, by their stored probabilities.

    Attributes:
        seed: seed of the draws, together with the epoch.
        language: only texts of this language; None: all.
        one_per_image: choose one text of each image before its probability decides (MetaCLIP 2).
    """

    seed: int
    language: str | None = None
    one_per_image: bool = False


@dataclass(frozen=True)
class ShardTexts:
    """The texts of one shard in a view, as columns of (num_texts,) each."""

    rows: NDArray[np.int32]
    text_index: NDArray[np.int32]
    language: NDArray[np.int16]  # indices into `languages`
    languages: list[str]
    keys: Keys | None = None
    probability: NDArray[np.float32] | None = None

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """Rows that have a text, ascending."""
        return np.unique(self.rows).astype(np.int64)

    def drawn(self, draw: TextDraw, epoch: int, part: slice = slice(None)) -> NDArray[np.bool_]:
        """Return a mask of the texts that an epoch uses; `part` must contain whole samples."""
        assert self.keys is not None
        assert self.probability is not None
        images = self.rows[part] if draw.one_per_image else None
        return drawn(self.keys[part], self.probability[part], draw.seed, epoch, images=images)

    def part(self, row: int) -> slice:
        """Return the range of a row's texts."""
        return slice(*np.searchsorted(self.rows, [row, row + 1]).tolist())


class SubsetView:
    """Reads `subset.parquet` shard by shard, so that a subset of any size fits into memory.

    Without a `draw` it contains the kept texts, with a `draw` all texts that an epoch may draw.
    """

    def __init__(self, directory: Path, num_shards: int, draw: TextDraw | None = None) -> None:
        """Count the samples of each shard in one streaming pass over a few columns.

        Raises:
            UserError: the file is missing or damaged, lacks a column, or is not sorted by (shard, row).
        """
        self.path, self.draw = directory / SUBSET_FILE, draw
        if not self.path.is_file():
            raise UserError(f"{directory}: {SUBSET_FILE} is missing; expected a curated subset")
        self.file = open_parquet_file(self.path)
        if missing := set(subset_schema().names) - set(self.file.schema_arrow.names):
            raise UserError(f"{self.path}: no column '{min(missing)}'; curate again with this version of vfm")
        self.shard_sizes = np.zeros(num_shards, dtype=np.int64)
        self._groups = np.zeros((num_shards, 2), dtype=np.int32)  # row groups that hold the shard, first to last + 1
        with reading(self.path, "a curated subset"):
            self._scan()
        self._read_groups = lru_cache(1)(self.file.read_row_groups)
        self.shard = lru_cache(SHARDS_IN_MEMORY)(self.read)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Return the rows of the shard that have a text in the view, ascending."""
        return self.shard(shard).samples

    def texts(self, shard: int, row: int, epoch: int | None = None) -> dict[str, list[int]]:
        """Return the indices of a sample's texts by language: all in the view, or those that an epoch uses."""
        found = self.shard(shard)
        part = found.part(row)
        language, text_index = found.language[part], found.text_index[part]
        if self.draw and epoch is not None:
            used = found.drawn(self.draw, epoch, part)
            language, text_index = language[used], text_index[used]
        places: dict[str, list[int]] = {}
        for code, place in zip(language.tolist(), text_index.tolist(), strict=True):
            places.setdefault(found.languages[code], []).append(place)
        return places

    def narrow(self, sample: Sample, shard: int, row: int, epoch: int | None = None) -> dict[str, list[str]]:
        """Return the texts of a sample that are in the view, or those that an epoch uses."""
        return {
            language: [sample.texts[language][place] for place in places]
            for language, places in self.texts(shard, row, epoch).items()
        }

    def read(self, shard: int) -> ShardTexts:
        """Read the texts of a shard.

        Raises:
            UserError: the file is damaged.
        """
        with reading(self.path, "a curated subset"):
            return self._read(shard)

    def _read(self, shard: int) -> ShardTexts:
        columns = ("shard", "row", "language", "text_index", *(["uid", "probability"] if self.draw else ["kept"]))
        table = self._read_groups(range(*self._groups[shard].tolist()), columns)
        table = table.slice(*_span(table["shard"].to_numpy(), shard))
        if not self.draw:
            table = table.filter(table["kept"])
        elif self.draw.language is not None:
            table = table.filter(pc.equal(table["language"], self.draw.language))
        languages = table["language"].combine_chunks().dictionary_encode()
        return ShardTexts(
            table["row"].to_numpy(),
            table["text_index"].to_numpy(),
            languages.indices.to_numpy(zero_copy_only=False).astype(np.int16),
            languages.dictionary.to_pylist(),
            text_keys(table["uid"], table["language"], table["text_index"]) if self.draw else None,
            table["probability"].to_numpy() if self.draw else None,
        )

    def _scan(self) -> None:
        """Find the row groups of each shard, and count the samples that have a text in the view."""
        language = self.draw.language if self.draw else None
        columns = ["shard", "row", *([] if self.draw else ["kept"]), *(["language"] if language is not None else [])]
        last = last_shown = np.int64(-1)
        for group in range(self.file.num_row_groups):
            table = self.file.read_row_group(group, columns=columns)
            if not len(table):
                continue
            shards = table["shard"].to_numpy()
            places = shards.astype(np.int64) << 32 | table["row"].to_numpy()  # one sortable number per (shard, row)
            if (np.diff(places, prepend=last) < 0).any():
                raise UserError(f"{self.path}: not sorted by shard and row")
            if shards[-1] >= len(self.shard_sizes):
                raise UserError(f"{self.path}: shard {shards[-1]} is not in the pool of {len(self.shard_sizes)} shards")
            last = places[-1]
            here = np.unique(shards)
            # The range of row groups of a shard begins with the first group in which the shard occurs.
            self._groups[here, 0] = np.where(self._groups[here, 1] > 0, self._groups[here, 0], group)
            self._groups[here, 1] = group + 1
            shown = places if self.draw else places[table["kept"].to_numpy()]
            if language is not None:
                shown = places[pc.equal(table["language"], language).to_numpy()]
            if len(shown):  # count a sample once, also if its texts continue in the next row group
                new = shown[np.diff(shown, prepend=last_shown) > 0] >> 32
                self.shard_sizes += np.bincount(new, minlength=len(self.shard_sizes))
                last_shown = shown[-1]


def _span(shards: NDArray[np.int32], shard: int) -> tuple[int, int]:
    """Return offset and length of a shard's rows among sorted rows."""
    first, stop = np.searchsorted(shards, [shard, shard + 1]).tolist()
    return first, stop - first
