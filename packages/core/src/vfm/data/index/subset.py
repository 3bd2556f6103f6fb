"""A curated view of a pool that reads the kept texts of each sample from the files of `subset_files`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.index.subset_files import SUBSET_INDEX, read_subset_index, read_subset_shard, subset_file, subset_schema
from vfm.data.samples.arrays import one_array
from vfm.data.samples.draws import Keys, drawn, text_keys
from vfm.data.samples.sample import Sample

SHARDS_IN_MEMORY = 1024  # about a quarter of a MB each with 10,000 texts


@dataclass(frozen=True)
class TextDraw:
    """Settings for drawing the texts of each epoch by their stored probabilities.

    Attributes:
        seed: Seed of the draws, together with the epoch.
        language: Only texts of this language. None: all languages.
        one_per_image: Choose one text for each image before applying its probability (MetaCLIP 2).
    """

    seed: int
    language: str | None = None
    one_per_image: bool = False


@dataclass(frozen=True)
class ShardTexts:
    """The texts of a shard in a view, as columns of (num_texts,) each."""

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
        """Compute a mask of the texts that an epoch uses.

        Args:
            draw: Rule of the draw.
            epoch: Number of the epoch.
            part: Range of texts. It must contain whole samples.
        """
        assert self.keys is not None
        assert self.probability is not None
        images = self.rows[part] if draw.one_per_image else None
        return drawn(self.keys[part], self.probability[part], draw.seed, epoch, images=images)

    def part(self, row: int) -> slice:
        """Find the range of a row's texts."""
        return slice(*np.searchsorted(self.rows, [row, row + 1]).tolist())


class SubsetView:
    """Reads a subset shard by shard, so that a subset of any size fits into memory.

    Without a `draw` it contains the kept texts, with a `draw` all texts that an epoch may draw.
    """

    def __init__(self, directory: Path, num_shards: int, draw: TextDraw | None = None) -> None:
        """Read the number of samples of each shard from the index; no shard is opened.

        Raises:
            UserError: If the index is missing or damaged, or names a shard that the pool does not have.
        """
        self.path = directory
        self.draw = draw
        self.shard_sizes = np.zeros(num_shards, dtype=np.int64)
        index = read_subset_index(directory)
        language = draw.language if draw else None
        if language is None:
            chosen = pc.is_null(index["language"])
        else:
            chosen = pc.equal(index["language"], language)
        index = index.filter(pc.fill_null(chosen, False))
        shards = index["shard"].to_numpy()
        if len(shards) and shards.max() >= num_shards:
            raise UserError(
                f"{directory / SUBSET_INDEX}: shard {shards.max()} is not in the pool of {num_shards} shards"
            )
        counted = "samples" if draw else "kept_samples"
        self.shard_sizes[shards] = index[counted].to_numpy()
        self.shard = lru_cache(SHARDS_IN_MEMORY)(self.read)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """List the rows of the shard that have a text in the view, ascending."""
        return self.shard(shard).samples

    def texts(self, shard: int, row: int, epoch: int | None = None) -> dict[str, list[int]]:
        """Find the indices of a sample's texts by language.

        Args:
            shard: Number of the shard.
            row: Row of the sample.
            epoch: Select the texts that this epoch uses. Default: all texts in the view.
        """
        shard_texts = self.shard(shard)
        part = shard_texts.part(row)
        language = shard_texts.language[part]
        text_index = shard_texts.text_index[part]
        if self.draw and epoch is not None:
            used = shard_texts.drawn(self.draw, epoch, part)
            language = language[used]
            text_index = text_index[used]
        indices: dict[str, list[int]] = {}
        for code, index in zip(language.tolist(), text_index.tolist(), strict=True):
            indices.setdefault(shard_texts.languages[code], []).append(index)
        return indices

    def narrow(self, sample: Sample, shard: int, row: int, epoch: int | None = None) -> dict[str, list[str]]:
        """Select the texts of a sample that are in the view.

        Args:
            sample: The sample with all its texts.
            shard: Number of the shard.
            row: Row of the sample.
            epoch: Select the texts that this epoch uses. Default: all texts in the view.
        """
        texts = {}
        for language, indices in self.texts(shard, row, epoch).items():
            texts[language] = [sample.texts[language][index] for index in indices]
        return texts

    def read(self, shard: int) -> ShardTexts:
        """Read the texts of a shard.

        Raises:
            UserError: If the file is missing or damaged, or does not have the samples of the index.
        """
        columns = ["row", "language", "text_index"]
        columns += ["uid", "probability"] if self.draw else ["kept"]
        table = subset_schema().empty_table()
        if self.shard_sizes[shard]:
            table = read_subset_shard(self.path, shard, columns)
        # A fixed subset has only the kept texts. A subset that is drawn again has all texts.
        if not self.draw:
            table = table.filter(table["kept"])
        elif self.draw.language is not None:
            table = table.filter(pc.equal(table["language"], self.draw.language))
        languages = one_array(table["language"]).dictionary_encode()
        keys = probability = None
        if self.draw:
            keys = text_keys(table["uid"], table["language"], table["text_index"])
            probability = table["probability"].to_numpy()
        texts = ShardTexts(
            table["row"].to_numpy(),
            table["text_index"].to_numpy(),
            languages.indices.to_numpy(zero_copy_only=False).astype(np.int16),
            languages.dictionary.to_pylist(),
            keys,
            probability,
        )
        # The index and the rows are separate files and can disagree.
        if len(texts.samples) != self.shard_sizes[shard]:
            raise UserError(
                f"{subset_file(self.path, shard)}: {len(texts.samples)} samples, {SUBSET_INDEX} says"
                f" {self.shard_sizes[shard]}; curate again"
            )
        return texts
