"""Words and pairs of words of a pool's captions, counted shard by shard."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from vfm.artifacts import PairDataset
from vfm.data import open_dataset
from vfm.stage import Context
from vfm_curation.entry_sources.base import TokenizerName
from vfm_curation.metadata.counting import MAX_COUNTED
from vfm_curation.metadata.tokenizers import find_tokenizer
from vfm_curation.metadata.vocabulary import Vocabulary
from vfm_curation.pool_texts import texts_of


def count_captions(
    pool: PairDataset, languages: Sequence[str], tokenizer: TokenizerName, ctx: Context
) -> dict[str, Vocabulary]:
    """The vocabulary of each language's captions.

    Args:
        pool: whose captions; of a curated subset the kept ones.
        languages: all others are left alone.
        tokenizer: as in a recipe.
        ctx: told the progress and the samples that cannot be used; its work folder takes what memory does not hold.
    """
    found = {
        language: Vocabulary(
            tokenizer=find_tokenizer(tokenizer, language, prose=False),
            folder=ctx.work / "counts" / language,
            max_counted=MAX_COUNTED // len(languages),
        )
        for language in languages
    }
    source = open_dataset(pool)
    num_shards, num_texts = len(source.shard_sizes), 0
    for shard in range(num_shards):
        texts = texts_of(source, shard, on_bad=ctx.skip)
        for language, vocabulary in found.items():
            own = texts["text"].filter(pc.equal(texts["language"], language))
            vocabulary.add(own.to_pylist())
            num_texts += len(own)
        ctx.progress(shard + 1, num_shards, "shards", texts=num_texts)
    return found
