"""Filters before matching and balancing, on generated shapes with planted duplicates."""

import random
from typing import Any

from vfm.data import open_dataset, read_subset
from vfm.data.synthetic.stages import ShapesPool
from vfm.data.synthetic.world import World
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata


def test_shapes_with_planted_duplicates_is_filtered_matched_and_balanced(make_pool: Any, run_stage: Any) -> None:
    made = run_stage(ShapesPool(name="made", num_samples=120, world=World(image_size=48)))
    source = open_dataset(made)
    originals = [source[i] for i in range(len(source))]
    samples = [(f"1-{s.uid}", s.texts) for s in originals]
    images = {f"1-{s.uid}": s.image for s in originals}
    planted = {f"2-{s.uid}": s for s in originals[::4]}
    samples += [(uid, s.texts) for uid, s in planted.items()]
    images |= {uid: s.image for uid, s in planted.items()}
    random.Random(0).shuffle(samples)
    pool = make_pool("pool", samples, shard_size=31, images=images)
    one = {"type": "duplicates", "of": "image"}
    filtered = run_stage(FilterPool(name="filtered", pool="p", filters=[one]), p=pool)
    kept = set(read_subset(filtered.path)["uid"].to_pylist())
    assert kept == set(images) - set(planted)

    metadata = run_stage(BuildMetadata(name="entries", captions="p", min_count=2), p=filtered)
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=filtered, m=metadata)
    assert matches.num_texts == sum(len(texts["en"]) for uid, texts in samples if uid in kept)
    balanced = run_stage(MetaclipBalance(name="balanced", matches="x", t=20), x=matches)
    rows = read_subset(balanced.path).to_pylist()
    assert {row["uid"] for row in rows} <= kept
    view = open_dataset(balanced)
    texts = dict(samples)
    assert all(set(view[i].texts["en"]) <= set(texts[view[i].uid]["en"]) for i in range(len(view)))
