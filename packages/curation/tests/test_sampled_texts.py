"""What other choices of t would keep, from a sample of each shard: unbiased, and exact if the sample is complete."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vfm_curation.counts.matches import ShardMatches
from vfm_curation.counts.probabilities import count_ids, keep_probability, text_probability
from vfm_curation.counts.sampled_texts import NUM_SAMPLED, SampledTexts, siblings_of

NUM_ENTRIES = 50


def shards(number: int, size: int) -> list[ShardMatches]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        lists = [sorted(set((rng.zipf(1.3, rng.integers(1, 6)) % NUM_ENTRIES).tolist())) for _ in range(size)]
        offsets = np.cumsum([0, *map(len, lists)])
        rows = np.sort(rng.integers(0, size // 2, size)).astype(np.int32)
        ids = np.array([one for some in lists for one in some], np.int32)
        found.append(ShardMatches(pa.table({"row": rows}), ids, offsets))
    return found


def exact(found: list[ShardMatches], probability: Any, texts: str) -> tuple[float, Any]:
    size, counts = 0.0, np.zeros(NUM_ENTRIES)
    for shard in found:
        chances = text_probability(shard.ids, shard.offsets, probability)
        if texts == "one_per_image":
            chances = chances / siblings_of(shard.table["row"].to_numpy())
        size += chances.sum()
        counts += np.bincount(shard.ids, np.repeat(chances, np.diff(shard.offsets)), minlength=NUM_ENTRIES)
    return size, counts


@pytest.mark.parametrize("texts", ["every", "one_per_image"])
@pytest.mark.parametrize(("number", "size"), [(5, 40), (6000, 90)], ids=["complete", "sampled"])
def test_expectations_of_a_sample_are_those_of_all_texts(number: int, size: int, texts: Any) -> None:
    kinds = shards(min(number, 60), size)
    found = [kinds[i % len(kinds)] for i in range(number)]
    sampled = SampledTexts.joined(SampledTexts.of_shard(one, i, number) for i, one in enumerate(found))
    assert sampled.complete == (size <= NUM_SAMPLED // number)
    assert len(sampled.weights) == number * min(size, NUM_SAMPLED // number)
    assert sampled.weights.sum() == pytest.approx(number * size)
    counts = count_ids((shard.ids for shard in found), NUM_ENTRIES)
    choices = [keep_probability(counts, t) for t in (number, 10 * number)]
    for one, probability in zip(sampled.expectations(choices, texts), choices, strict=True):
        expected, by_entry = exact(found, probability, texts)
        tolerance = 1e-6 if sampled.complete else 4 * (1 / len(sampled.weights)) ** 0.5  # four standard errors
        assert one.size == pytest.approx(expected, rel=tolerance)
        common = by_entry > by_entry.sum() / 100
        rare = 1e-6 if sampled.complete else 0.05
        np.testing.assert_allclose(one.counts[common], by_entry[common], rtol=rare)


def test_the_sample_of_a_pool_does_not_grow_with_its_shards() -> None:
    (shard,) = shards(1, 90)
    for number in (1, 1000, 10_000, 200_000, 1_000_000):
        assert len(SampledTexts.of_shard(shard, 0, number).weights) <= max(1, NUM_SAMPLED // number)


def test_an_empty_shard_has_an_empty_sample() -> None:
    nothing = ShardMatches(pa.table({"row": pa.array([], pa.int32())}), np.zeros(0, np.int32), np.zeros(1, np.int64))
    sampled = SampledTexts.joined([SampledTexts.of_shard(nothing, 0, 1)] * 2)
    assert sampled.offsets.tolist() == [0]
    assert sampled.expectations([np.ones(3)], "every")[0].size == 0
