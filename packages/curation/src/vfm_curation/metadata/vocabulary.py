"""Entries from texts: their words by count, their pairs of words by pointwise mutual information (PMI).

Sources: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1 for counts and PMI, appendix A.7 for
metadata from the captions themselves; Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062), appendix, for `score`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm_curation.metadata.counting import MAX_COUNTED, SpillingCounter, by_strength, strongest
from vfm_curation.metadata.tokenizers import BREAK, Tokenizer, caption_words
from vfm_curation.shard_files import whole_file

PairRank = Literal["pmi", "score"]
TEXTS_AT_ONCE = 10_000
STATE_FILE = "state.json"
ABOVE_CHANCE = 1e-9  # bits of PMI
SCORE_QUANTILE = 0.3
SCORE_POWER = 0.7
PMI_BINS = np.linspace(-128, 128, (1 << 18) + 1)  # bits; a bin is a thousandth of one
Floats = NDArray[np.float64]


class Vocabulary:
    """Counts the words of texts and the pairs of neighbouring words. A pair reaches across no "" of the tokenizer.

    Args:
        texts: to count right away.
        tokenizer: splits texts; the default finds what the matcher would find in captions.
        folder: where counts go that memory does not hold; None: everything stays in memory.
        max_counted: distinct words, and distinct pairs, in memory.
        resume: take up what `save` has left in the folder; `progress` is what was said of it. Else it is made empty.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        tokenizer: Tokenizer = Tokenizer(caption_words),  # noqa: B008 - frozen
        folder: Path | None = None,
        max_counted: int = MAX_COUNTED,
        resume: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        state = _state(folder, resume)
        self.folder, self.num_words = folder, state["num_words"]
        self.progress: dict[str, Any] = state["progress"]
        self.words, self.pairs = (
            SpillingCounter(folder and folder / name, max_counted=max_counted, num_files=state[name])
            for name in ("words", "pairs")
        )
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        """Counts texts, however many there are."""
        texts = iter(texts)
        while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            self.add_counts(*count_words(map(self.tokenizer, some)))

    def add_counts(self, words: Mapping[str, int], pairs: Mapping[str, int]) -> None:
        """Counts what `count_words` has counted."""
        self.num_words += sum(words.values())
        self.words.add(words)
        self.pairs.add(pairs)

    @property
    def num_files(self) -> int:
        """How many files counts have gone to."""
        return len(self.words.files) + len(self.pairs.files)

    def save(self, progress: Mapping[str, Any]) -> None:
        """Brings all counts to the folder, with what the caller wants to know of them (what JSON can hold)."""
        assert self.folder
        self.words.spill()
        self.pairs.spill()
        files = {"words": len(self.words.files), "pairs": len(self.pairs.files)}
        with whole_file(self.folder / STATE_FILE) as part:
            part.write_text(json.dumps({"num_words": self.num_words, "progress": progress, **files}), encoding="utf-8")

    def top_words(self, min_count: int = 1, *, share: float = 1.0, limit: int | None = None) -> list[str]:
        """Words seen at least `min_count` times, commonest first; see `SpillingCounter.top`."""
        return self.words.top(min_count, share=share, limit=limit)

    def top_pairs(
        self, min_count: int = 1, *, rank: PairRank = "pmi", min_pmi: float = ABOVE_CHANCE, limit: int | None = None
    ) -> list[str]:
        """Pairs as entries, strongest first, ties by the text.

        Args:
            min_count: occurrences that a pair needs. PMI alone is highest for pairs seen once.
            rank: `pmi`: log2(count(ab) * N / (count(a) * count(b))), N being the number of words; `score`: MetaCLIP
                2's (count + 1)^0.7 * (PMI - the 0.3 quantile of PMI over all distinct pairs), where positive.
            min_pmi: PMI in bits that a pair needs; of `pmi` alone.
            limit: at most this many.
        """
        base = self._pmi_quantile(SCORE_QUANTILE) if rank == "score" else 0.0
        parts = []
        for table, pmi in self._pairs_with_pmi():
            counts = table["count"].to_numpy()
            if rank == "score":
                value = np.round((counts + 1.0) ** SCORE_POWER * (pmi - base), 9)
                good = value > 0
            else:
                value, good = pmi, pmi >= min_pmi
            chosen = pa.array(good & (counts >= min_count))
            part = table.append_column("value", pa.array(value)).filter(chosen)
            parts.append(part.take(by_strength(part, "value", limit)))
        pairs = strongest(pa.concat_tables(parts), "value", limit)
        return [pair.replace(" ", self.tokenizer.joiner) for pair in pairs]

    def entries(
        self, size: int | None = None, *, min_count: int = 5, bigram_min_count: int = 5, bigram_share: float = 0.3
    ) -> dict[str, str]:
        """Entries as entry -> source, "unigram" or "bigram", in their order: all that qualify, or the best `size`.

        Of `size` entries `bigram_share` are pairs; where one kind has too few for its share, the other fills up.
        """
        words, pairs = self.top_words(min_count, limit=size), self.top_pairs(bigram_min_count, limit=size)
        size = len(words) + len(pairs) if size is None else size
        num_pairs = min(len(pairs), max(round(size * bigram_share), size - len(words)))
        sources = dict.fromkeys(words[: size - num_pairs], "unigram")
        return sources | dict.fromkeys(pairs[:num_pairs], "bigram")

    def _pairs_with_pmi(self) -> Iterator[tuple[pa.Table, Floats]]:
        """Each table of pairs with the PMI of each, to 1e-9 bits: the last digit of a logarithm shall order nothing."""
        known = pa.concat_tables(self.words.tables()).combine_chunks()
        counts = known["count"].to_numpy()
        for table in self.pairs.tables():
            halves = pc.list_flatten(pc.split_pattern(table["key"], " ")).combine_chunks()
            both = counts[pc.index_in(halves, known["key"]).to_numpy().reshape(-1, 2)].astype(np.float64)
            yield table, np.round(np.log2(table["count"].to_numpy() * (self.num_words / both[:, 0]) / both[:, 1]), 9)

    def _pmi_quantile(self, share: float) -> float:
        """A quantile of PMI over all distinct pairs, to a thousandth of a bit."""
        histogram = np.zeros(len(PMI_BINS) - 1, dtype=np.int64)
        for _, pmi in self._pairs_with_pmi():
            histogram += np.histogram(pmi, PMI_BINS)[0]
        return float(PMI_BINS[np.searchsorted(np.cumsum(histogram), share * histogram.sum())])


def _state(folder: Path | None, resume: bool) -> dict[str, Any]:
    """What `Vocabulary.save` has left in a folder; of nothing counted where it has not, or is not wanted."""
    file = folder and folder / STATE_FILE
    if file and file.exists() and resume:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return state
    if file:
        file.unlink(missing_ok=True)
    return {"num_words": 0, "progress": {}, "words": 0, "pairs": 0}


def count_words(texts: Iterable[list[str]]) -> tuple[Counter[str], Counter[str]]:
    """Counts the words and the neighbouring pairs ("a b") of tokenized texts, in which "" stands for a break."""
    words = [word for text in texts for word in (*text, BREAK)]
    pairs = Counter(f"{first} {second}" for first, second in itertools.pairwise(words) if first and second)
    return Counter(filter(None, words)), pairs
