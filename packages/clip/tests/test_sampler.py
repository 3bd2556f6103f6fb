"""`loading.sampler: balanced`: each epoch of a curated subset is drawn; data without probabilities are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clip_world import make_pool, plan, run_stage
from vfm.data import SampleOrder, open_balanced, open_dataset, subset_schema, write_subset
from vfm.data.pairs.stages import Pairs
from vfm.models import build_clip
from vfm.plugin import CuratedSubset, Event, Pool, Preflight, UserError
from vfm_clip.data import training_data


def make_subset(pool: Pool, directory: Path) -> CuratedSubset:
    """Return all texts of the pool; every second one has probability 1, the others 0.2."""
    source = open_dataset(pool)
    tables = []
    for shard in range(len(source.shard_sizes)):
        texts = source.texts_of_shard(shard)
        number = len(texts)
        columns = {
            "shard": np.full(number, shard), **{name: texts[name] for name in texts.column_names if name != "text"},
            "probability": np.where(np.arange(number) % 2, 1.0, 0.2), "kept": np.ones(number, bool),
        }  # fmt: skip
        tables.append(pa.table(columns).select(subset_schema().names).cast(subset_schema()))
    directory.mkdir()
    write_subset(directory, pa.concat_tables(tables))
    return CuratedSubset.create(directory, num_samples=len(source), pool=pool.reference(directory))


def test_balanced_epochs_differ_from_shuffled_ones_and_resume_is_exact(tmp_path: Path) -> None:
    subset = make_subset(make_pool(tmp_path / "pool"), tmp_path / "subset")
    changes = {"steps": 12, "global_batch_size": 16, "checkpoint": {"every_steps": 1}, "ema_decay": None}
    stage = plan(loading={"sampler": "balanced"}, data="pool", **changes)
    whole, _ = run_stage(stage, tmp_path / "whole", pool=subset)

    class CutError(Exception):
        pass

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 7:
            raise CutError

    with pytest.raises(CutError):
        run_stage(stage, tmp_path / "cut", send=cut, pool=subset)
    again, _ = run_stage(stage, tmp_path / "cut", pool=subset)
    weights = [(made.path / "open_clip_model.safetensors").read_bytes() for made in (whole, again)]
    assert weights[0] == weights[1]
    shuffled, _ = run_stage(plan(**changes), tmp_path / "shuffled", pool=subset)
    assert (shuffled.path / "open_clip_model.safetensors").read_bytes() != weights[0]


def test_the_stage_draws_with_its_language_and_seed(tmp_path: Path) -> None:
    subset = make_subset(make_pool(tmp_path / "pool"), tmp_path / "subset")
    stage = plan(loading={"sampler": "balanced"}, seed=4, global_batch_size=16)
    data, _ = training_data(stage, [subset], build_clip(stage.model, seed=0), {"en": 1.0})
    source = open_balanced(subset, seed=4, language="en")
    order = SampleOrder(source.epochs, seed=4, shuffle_shards=1000)
    assert data.order().of_epochs(0, 200) == order.of_epochs(0, 200)
    sizes = [int(source.epochs.sizes(epoch).sum()) for epoch in range(4)]
    assert all(28 <= size < 56 for size in sizes)  # 28 texts of probability 1, and a fifth of the others


def test_data_without_probabilities_are_refused_in_the_preflight(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    stage = plan(loading={"sampler": "balanced"})
    with pytest.raises(UserError, match=r"sampler: balanced expects a CuratedSubset, got a Pool: .*pool"):
        stage.preflight(Preflight({}, {"pool": pool.path}))
    with pytest.raises(UserError, match="needs a CuratedSubset with probabilities, 'pool' is a Pool"):
        stage.preflight(Preflight({"pool": Pairs(name="pool", path="x")}, {}))
    with pytest.raises(UserError, match="expects a CuratedSubset, got a Pool"):
        run_stage(stage, tmp_path, pool=pool)
