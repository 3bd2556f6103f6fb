"""Choose words by count and bigrams by pointwise mutual information (PMI) as entries.

Sources: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1 for counts and PMI, appendix A.7 for
metadata from the captions themselves. Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062), appendix, for `score`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.plugin import store_files
from vfm_curation.metadata.counting import MAX_COUNTED, SpillingCounter, by_strength, strongest
from vfm_curation.metadata.tokenizers import BREAK, WordSplitter, caption_words
from vfm_curation.shard_files import whole_file

PairRank = Literal["pmi", "score"]
TEXTS_AT_ONCE = 10_000  # texts for each call of the tokenizer
STATE_FILE = "state.json"
ABOVE_CHANCE = 1e-9  # bits of PMI
SCORE_QUANTILE = 0.3
SCORE_POWER = 0.7
PMI_BINS = np.linspace(-128, 128, (1 << 18) + 1)  # bits; a bin is a thousandth of one
Floats = NDArray[np.float64]


class Vocabulary:
    """Counter of the words of texts and of pairs of adjacent words. No pair crosses a break ("") of the tokenizer.

    Args:
        texts: Texts to count at once.
        tokenizer: Splits texts. The default gives the words that the matcher sees in captions.
        folder: Folder for counts that exceed memory. Without it, all counts stay in memory.
        max_counted: Largest number of distinct words, and of distinct pairs, in memory.
        resume: Continue from the counts that `save` wrote to the folder and restore `progress`. Without it, the folder
            is emptied.
    """

    def __init__(
        self,
        texts: Iterable[str] = (),
        *,
        tokenizer: WordSplitter = WordSplitter(caption_words),  # noqa: B008 - frozen
        folder: Path | None = None,
        max_counted: int = MAX_COUNTED,
        resume: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        state = _state(folder, resume)
        self.folder = folder
        self.num_words = state["num_words"]
        self.progress: dict[str, Any] = state["progress"]
        counter = partial(SpillingCounter, max_counted=max_counted)
        self.words = counter(folder and folder / "words", num_files=state["words"])
        self.pairs = counter(folder and folder / "pairs", num_files=state["pairs"])
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        """Count texts."""
        texts = iter(texts)
        while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            self.add_counts(*count_words(map(self.tokenizer, some)))

    def add_counts(self, words: Mapping[str, int], pairs: Mapping[str, int]) -> None:
        """Add counts from `count_words`."""
        self.num_words += sum(words.values())
        self.words.add(words)
        self.pairs.add(pairs)

    @property
    def num_files(self) -> int:
        """Number of files with counts."""
        return len(self.words.files) + len(self.pairs.files)

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write all counts to the folder, with the caller's progress (JSON values)."""
        assert self.folder
        self.words.spill()
        self.pairs.spill()
        files = {"words": len(self.words.files), "pairs": len(self.pairs.files)}
        with whole_file(self.folder / STATE_FILE) as part:
            part.write_text(json.dumps({"num_words": self.num_words, "progress": progress, **files}), encoding="utf-8")

    def top_words(self, min_count: int = 1, *, share: float = 1.0, limit: int | None = None) -> list[str]:
        """Select the words with at least `min_count` occurrences, most frequent first. See `SpillingCounter.top`."""
        return self.words.top(min_count, share=share, limit=limit)

    def top_pairs(
        self, min_count: int = 1, *, rank: PairRank = "pmi", min_pmi: float = ABOVE_CHANCE, limit: int | None = None
    ) -> list[str]:
        """Select pairs as entries, strongest first. Ties are ordered by the text.

        Args:
            min_count: Smallest count of a pair. PMI alone is highest for pairs that occur once.
            rank: `pmi` ranks by log2(count(ab) * N / (count(a) * count(b))), where N is the number of words. `score`
                ranks by MetaCLIP 2's (count + 1)^0.7 * (PMI - the 0.3 quantile of PMI over all distinct pairs), and
                takes positive scores only.
            min_pmi: Smallest PMI of a pair in bits, only for `pmi`.
            limit: Largest number of pairs.
        """
        base = self._pmi_quantile(SCORE_QUANTILE) if rank == "score" else 0.0
        parts = []
        for table, pmi in self._pairs_with_pmi():
            counts = table["count"].to_numpy()
            if rank == "score":
                value = np.round((counts + 1.0) ** SCORE_POWER * (pmi - base), 9)
                good = value > 0
            else:
                value = pmi
                good = pmi >= min_pmi
            chosen = pa.array(good & (counts >= min_count))
            part = table.append_column("value", pa.array(value)).filter(chosen)
            parts.append(part.take(by_strength(part, "value", limit)))
        pairs = strongest(pa.concat_tables(parts), "value", limit)
        return [pair.replace(" ", self.tokenizer.joiner) for pair in pairs]

    def entries(
        self,
        size: int | None = None,
        *,
        min_count: int,
        bigram_min_count: int,
        bigram_share: float,
        min_pmi: float = ABOVE_CHANCE,
        only: Callable[[str], bool] | None = None,
    ) -> dict[str, str]:
        """Select words and pairs of words as entries.

        Args:
            size: Number of entries. Default: all that qualify.
            min_count: Least count of a word.
            bigram_min_count: Least count of a pair.
            bigram_share: Fraction of `size` that are pairs. If there are too few words or pairs, the others fill up.
            min_pmi: Smallest PMI of a pair in bits.
            only: Checks whether a word or pair may be an entry. Default: all may.

        Returns:
            Entries in order, each with its source, "unigram" or "bigram".
        """
        limit = None if only is not None else size
        words = self.top_words(min_count, limit=limit)
        pairs = self.top_pairs(bigram_min_count, min_pmi=min_pmi, limit=limit)
        if only is not None:
            words = list(filter(only, words))[:size]
            pairs = list(filter(only, pairs))[:size]
        size = len(words) + len(pairs) if size is None else size
        num_pairs = min(len(pairs), max(round(size * bigram_share), size - len(words)))
        sources = dict.fromkeys(words[: size - num_pairs], "unigram")
        return sources | dict.fromkeys(pairs[:num_pairs], "bigram")

    def _pairs_with_pmi(self) -> Iterator[tuple[pa.Table, Floats]]:
        """Yield each table of pairs with their PMI in bits."""
        known = pa.concat_tables(self.words.tables()).combine_chunks()
        counts = known["count"].to_numpy()
        for table in self.pairs.tables():
            halves = pc.list_flatten(pc.split_pattern(table["key"], " ")).combine_chunks()
            both = counts[pc.index_in(halves, known["key"]).to_numpy().reshape(-1, 2)].astype(np.float64)
            # Rounded, so that the last digits of a logarithm, which differ between machines, decide no order.
            yield table, np.round(np.log2(table["count"].to_numpy() * (self.num_words / both[:, 0]) / both[:, 1]), 9)

    def _pmi_quantile(self, share: float) -> float:
        """Compute a quantile of PMI over all distinct pairs, to a thousandth of a bit."""
        histogram = np.zeros(len(PMI_BINS) - 1, dtype=np.int64)
        for _, pmi in self._pairs_with_pmi():
            histogram += np.histogram(pmi, PMI_BINS)[0]
        return float(PMI_BINS[np.searchsorted(np.cumsum(histogram), share * histogram.sum())])


def _state(folder: Path | None, resume: bool) -> dict[str, Any]:
    """Read the state that `Vocabulary.save` wrote. The state is empty if there is none or `resume` is False."""
    file = folder and folder / STATE_FILE
    if file and file.exists() and resume:
        return store_files.read_record(file, "num_words", "progress", "words", "pairs")
    if file:
        file.unlink(missing_ok=True)
    return {"num_words": 0, "progress": {}, "words": 0, "pairs": 0}


def count_words(texts: Iterable[list[str]]) -> tuple[Counter[str], Counter[str]]:
    """Count the words and the adjacent pairs ("a b") of tokenized texts, in which "" is a break."""
    words: list[str] = []
    for text in texts:
        words += [*text, BREAK]
    pairs = Counter(f"{first} {second}" for first, second in itertools.pairwise(words) if first and second)
    return Counter(filter(None, words)), pairs
