"""A curated view of a pool: which texts of which samples were kept, as `subset.parquet` in the artifact's folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError
from vfm.data.draws import Keys, drawn, text_keys
from vfm.data.sample import Sample

SUBSET_FILE = "subset.parquet"
SHARDS_IN_MEMORY = 1024  # about a quarter of a MB each with 10,000 texts


def subset_schema() -> Any:
    """Columns of `subset.parquet`, one row for each text that matched or passed, kept or not.

    Sorted by (shard, row, language, text_index). shard and row say where the sample lies in the pool's index, uid names
    it, language and text_index say which of its texts, probability is the chance with which it is kept, and kept is
    what the draw said: a fixed subset has the kept rows, `sampler: balanced` draws anew from all of them.
    """
    import pyarrow as pa

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
class Draw:
    """How epochs draw their texts anew, each by its stored probability.

    seed: of the draws, together with the epoch.
    language: texts of this one alone; None: of all.
    one_per_image: choose one text of each image before its probability decides (MetaCLIP 2).
    """

    seed: int
    language: str | None = None
    one_per_image: bool = False


@dataclass(frozen=True)
class ShardTexts:
    """The texts of one shard in a view, one after the other, (num_texts,) each."""

    rows: NDArray[np.int32]
    text_index: NDArray[np.int32]
    language: NDArray[np.int16]  # places in `languages`
    languages: list[str]
    keys: Keys | None = None
    probability: NDArray[np.float32] | None = None

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """The rows that have a text, ascending."""
        return np.unique(self.rows).astype(np.int64)

    def drawn(self, draw: Draw, epoch: int, part: slice = slice(None)) -> NDArray[np.bool_]:
        """Which of the texts an epoch uses; `part` must hold whole samples."""
        assert self.keys is not None
        assert self.probability is not None
        images = self.rows[part] if draw.one_per_image else None
        return drawn(self.keys[part], self.probability[part], draw.seed, epoch, images=images)

    def part(self, row: int) -> slice:
        """Where the texts of a row stand."""
        return slice(*np.searchsorted(self.rows, [row, row + 1]).tolist())


class SubsetView:
    """Reads `subset.parquet` shard by shard, so that a subset of any size fits into memory.

    Without a `draw` it shows the kept texts, with one all that an epoch may draw.
    """

    def __init__(self, directory: Path, num_shards: int, draw: Draw | None = None) -> None:
        """Counts the samples of each shard in one streaming pass over a few columns.

        Raises:
            UserError: the file is missing, of another make, or not sorted by (shard, row).
        """
        import pyarrow.parquet as pq

        self.path, self.draw = directory / SUBSET_FILE, draw
        if not self.path.is_file():
            raise UserError(f"{directory}: {SUBSET_FILE} is missing; this is no curated subset")
        self.file = pq.ParquetFile(self.path)
        if missing := set(subset_schema().names) - set(self.file.schema_arrow.names):
            raise UserError(f"{self.path}: no column '{min(missing)}'; curate anew with this version of vfm")
        self.shard_sizes = np.zeros(num_shards, dtype=np.int64)
        self._groups = np.zeros((num_shards, 2), dtype=np.int32)  # row groups that hold the shard, first to last + 1
        self._scan()
        self._read_groups = lru_cache(1)(self.file.read_row_groups)
        self.shard = lru_cache(SHARDS_IN_MEMORY)(self.read)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Rows of the shard that have a text here, ascending."""
        return self.shard(shard).samples

    def texts(self, shard: int, row: int, epoch: int | None = None) -> dict[str, list[int]]:
        """Places of a sample's texts by language: all that are here, or those that an epoch uses."""
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
        """The texts themselves."""
        return {
            language: [sample.texts[language][place] for place in places]
            for language, places in self.texts(shard, row, epoch).items()
        }

    def read(self, shard: int) -> ShardTexts:
        """The texts of a shard."""
        import pyarrow.compute as pc

        wanted = ["uid", "probability"] if self.draw else ["kept"]
        columns = ("shard", "row", "language", "text_index", *wanted)
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
        """Finds the row groups of each shard, and counts the samples that have a text in the view."""
        import pyarrow.compute as pc

        language = self.draw.language if self.draw else None
        columns = ["shard", "row", *([] if self.draw else ["kept"]), *(["language"] if language is not None else [])]
        last = last_shown = np.int64(-1)
        for group in range(self.file.num_row_groups):
            table = self.file.read_row_group(group, columns=columns)
            if not len(table):
                continue
            shards = table["shard"].to_numpy()
            places = shards.astype(np.int64) << 32 | table["row"].to_numpy()
            if (np.diff(places, prepend=last) < 0).any():
                raise UserError(f"{self.path}: not sorted by shard and row")
            if shards[-1] >= len(self.shard_sizes):
                raise UserError(f"{self.path}: shard {shards[-1]} of a pool that has {len(self.shard_sizes)}")
            last = places[-1]
            here = np.unique(shards)
            self._groups[here, 0] = np.where(self._groups[here, 1] > 0, self._groups[here, 0], group)
            self._groups[here, 1] = group + 1
            shown = places if self.draw else places[table["kept"].to_numpy()]
            if language is not None:
                shown = places[pc.equal(table["language"], language).to_numpy()]
            if len(shown):
                new = shown[np.diff(shown, prepend=last_shown) > 0] >> 32
                self.shard_sizes += np.bincount(new, minlength=len(self.shard_sizes))
                last_shown = shown[-1]


def _span(shards: NDArray[np.int32], shard: int) -> tuple[int, int]:
    """Offset and length of a shard's rows among sorted ones."""
    first, stop = np.searchsorted(shards, [shard, shard + 1]).tolist()
    return first, stop - first
