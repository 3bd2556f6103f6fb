"""Entries from captions: their words by count, their pairs of words by pointwise mutual information.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1 for the ranking, appendix A.7 for
metadata from the captions themselves.
"""

from __future__ import annotations

import itertools
import math
import string
from collections import Counter
from collections.abc import Iterable

from vfm_curation.matching import tokenize


class Vocabulary:
    """Counts the words of captions and the pairs of neighbouring words, as the matcher would find them.

    A word is a token that is more than marks and ASCII punctuation. A pair reaches across no mark and no double space,
    since an entry of two words would not match there.
    """

    def __init__(self, captions: Iterable[str] = ()) -> None:
        self.unigrams: Counter[str] = Counter()
        self.bigrams: Counter[tuple[str, str]] = Counter()
        self.num_words = 0
        for caption in captions:
            self.add(caption)

    def add(self, caption: str) -> None:
        """Counts one caption."""
        tokens = [token if token.strip(string.punctuation) else "" for token in tokenize(caption)]
        words = list(filter(None, tokens))
        self.num_words += len(words)
        self.unigrams.update(words)
        self.bigrams.update(pair for pair in itertools.pairwise(tokens) if all(pair))

    def pmi(self, first: str, second: str) -> float:
        """Pointwise mutual information of a pair in bits: log2(count(ab) * N / (count(a) * count(b)))."""
        by_chance = self.unigrams[first] * self.unigrams[second] / self.num_words
        return math.log2(self.bigrams[first, second] / by_chance)

    def top_unigrams(self, min_count: int) -> list[str]:
        """Words seen at least `min_count` times, commonest first."""
        common = [(-count, word) for word, count in self.unigrams.items() if count >= min_count]
        return [word for _, word in sorted(common)]

    def top_bigrams(self, min_count: int) -> list[str]:
        """Pairs seen at least `min_count` times and more often than by chance, strongest PMI first.

        The minimum count matters: PMI alone is highest for pairs seen once.
        """
        seen = [pair for pair, count in self.bigrams.items() if count >= min_count]
        strength = [(-pmi, " ".join(pair)) for pair in seen if (pmi := self.pmi(*pair)) > 0]
        return [pair for _, pair in sorted(strength)]

    def entries(
        self, size: int | None = None, *, min_count: int = 5, bigram_min_count: int = 5, bigram_share: float = 0.3
    ) -> dict[str, str]:
        """Entries as entry -> source, "unigram" or "bigram", in their order: all that qualify, or the best `size`.

        Of `size` entries `bigram_share` are pairs; where one kind has too few for its share, the other fills up.
        """
        words, pairs = self.top_unigrams(min_count), self.top_bigrams(bigram_min_count)
        size = len(words) + len(pairs) if size is None else size
        num_pairs = min(len(pairs), max(round(size * bigram_share), size - len(words)))
        sources = dict.fromkeys(words[: size - num_pairs], "unigram")
        return sources | dict.fromkeys(pairs[:num_pairs], "bigram")
