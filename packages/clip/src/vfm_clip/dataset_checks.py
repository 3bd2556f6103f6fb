"""Check that the datasets of a CLIP training run have images, and different captions in the right language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vfm.data import Source, check_balanced, open_dataset
from vfm.plugin import (
    CuratedSubset,
    LinkTable,
    PairDataset,
    Portion,
    Preflight,
    Stage,
    TarList,
    UserError,
    did_you_mean,
)
from vfm_clip.data import language_weights

NUM_SHARDS_READ = 8  # shards to search for captions that differ


def check_datasets(
    datasets: Mapping[str, PairDataset],
    portions: Sequence[Portion],
    language: str | Mapping[str, float] | None,
    global_batch_size: int,
    *,
    balanced: bool,
) -> None:
    """Check datasets by their facts, their index and their first captions.

    Args:
        datasets: Datasets by their names in the recipe. A preflight may not have all of them.
        portions: All portions of the training data.
        language: Language or languages of the captions, as in the configuration.
        global_batch_size: Samples per step.
        balanced: Whether texts are drawn by a curated subset's probabilities.

    Raises:
        UserError: If there are too few pairs for a batch, no captions or images, or all captions
            equal.
    """
    for name, data in datasets.items():
        if not data.languages:
            raise UserError(f"'{name}' has no captions; set `texts` of data.pairs to the field that holds them")
        if balanced:
            check_balanced(data)
        if isinstance(data, TarList):
            if len(portions) > 1:
                raise UserError(f"'{name}': expected an index to mix datasets, got a list of tars; use data.pairs")
            _languages(list(language_weights(language, data)), name, data)
            return
        source = open_dataset(data)
        if isinstance(data, LinkTable) or not source.index.spec.images:
            raise UserError(f"'{name}' has captions but no images to train on")
        first = datasets.get(str(portions[0].data), data)  # its first language is the default for all
        languages = _languages(list(language_weights(language, first)), name, data)
        _check_captions(source, languages, name)
    num_samples = sum(data.num_samples for data in datasets.values())
    if len(datasets) == len(portions) and num_samples < global_batch_size:
        names = ", ".join(f"'{name}'" for name in datasets)
        raise UserError(
            f"global_batch_size must be at most {num_samples}, the pairs of {names}; got {global_batch_size}"
        )


def check_makers(portions: Sequence[Portion], ctx: Preflight, *, balanced: bool) -> None:
    """Check datasets that earlier stages of the recipe will produce.

    Their contents are derived from the configurations of those stages.

    Args:
        portions: All portions of the training data.
        ctx: Plan of the recipe.
        balanced: Whether texts are drawn by a curated subset's probabilities.

    Raises:
        UserError: If a dataset will have no images, or no probabilities for `sampler: balanced`.
    """
    for portion in portions:
        maker: Stage | None = ctx.stage(portion.data)
        if not maker:
            continue
        if balanced and not issubclass(maker.makes, CuratedSubset):
            raise UserError(
                f"loading.sampler: balanced needs a CuratedSubset with probabilities, '{portion.data}' is a"
                f" {maker.makes.__name__}"
            )
        if issubclass(maker.makes, LinkTable) or getattr(maker, "images", True) is False:
            raise UserError(f"'{portion.data}' will have captions but no images to train on")


def _languages(expected: Sequence[str], name: str, data: PairDataset) -> list[str]:
    """Select the expected languages that a dataset has, and fail if it has none."""
    available = [language for language in expected if language in data.languages]
    if available:
        return available
    if len(expected) == 1:
        data.check_languages(expected, name)
    listed = ", ".join(map(repr, expected))
    raise UserError(f"{name} has no captions in any of {listed}{did_you_mean(expected[0], data.languages)}")


def _check_captions(source: Source, languages: Sequence[str], name: str) -> None:
    """Check that captions differ, by reading a few shards until two captions do."""
    seen: set[str] = set()
    number = 0
    shards = np.flatnonzero(source.shard_sizes)
    read = shards
    if len(shards):
        # Spread over all shards, because equal captions come in runs, for example where files are sorted by class.
        read = shards[np.unique(np.linspace(0, len(shards) - 1, NUM_SHARDS_READ, dtype=int))]
    for shard in map(int, read):
        texts = source.texts_of_shard(shard)
        chosen = pc.is_in(texts["language"], value_set=pa.array(languages, pa.string()))
        texts = texts.filter(chosen)["text"]
        number += len(texts)
        seen.update(text.strip() for text in texts.slice(0, 2).to_pylist())
        if len(seen) < 2:  # the first two are equal: look for other values, which takes longer
            seen.update(text.strip() for text in pc.unique(texts).slice(0, 3).to_pylist())
        if len(seen) > 1:
            return
    where = "" if len(read) == len(shards) else f" in {len(read)} of {len(shards)} shards"
    if not number:
        raise UserError(f"'{name}' has no caption in {' or '.join(map(repr, languages))}{where}")
    if number > 1:
        raise UserError(f"all {number} captions of '{name}'{where} are {seen.pop()!r}: expected captions that differ")
