"""A training whose sampler names a column: resumed with equal bits, and equal draws in one and in two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_world import halves, plan, run_in_group, run_stage
from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.models import build_clip
from vfm.plugin import Event, Pool, Runtime, UserError
from vfm.train import distributed
from vfm_clip.data import training_data

SITES = ["north"] * 12 + ["south"] * 3 + ["west"]
SETTINGS: dict[str, Any] = {"steps": 8, "global_batch_size": 8, "data": "pool", "ema_decay": None}
SAMPLERS = [{"balanced": "site"}, {"weighted": "weight"}]


def make_sites(directory: Path) -> Pool:
    """Write pairs of two colours, each with a site and a weight in its json."""
    rows = []
    for number, site in enumerate(SITES):
        image = halves(f"hsl({number * 20}, 80%, 50%)", f"hsl({number * 20 + 90}, 80%, 40%)")
        record = {"caption": f"number {number}", "site": site, "weight": number % 4}
        rows.append((f"{number}", {"png": image, "json": json.dumps(record).encode()}))
    directory.mkdir(parents=True)
    shards = []
    for shard in range(2):
        path = directory / f"{shard}.tar"
        shards.append(Shard.of(path, write_tar(path, rows[shard::2])))
    spec = DatasetSpec(texts={"en": "json.caption"}, columns=["json.site", "json.weight"])
    return Pool.create(directory, num_samples=write_index(directory, shards, spec), languages=["en"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_training_has_the_bits_of_a_whole_one(tmp_path: Path, sampler: dict[str, str]) -> None:
    pool = make_sites(tmp_path / "pool")
    stage = plan(**SETTINGS, loading={"sampler": sampler}, checkpoint={"every_steps": 1})
    whole, _ = run_stage(stage, tmp_path / "whole", pool=pool)

    class CutError(Exception):
        pass

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise CutError

    with pytest.raises(CutError):
        run_stage(stage, tmp_path / "cut", send=cut, pool=pool)
    resumed, _ = run_stage(stage, tmp_path / "cut", pool=pool)
    shuffled, _ = run_stage(plan(**SETTINGS), tmp_path / "shuffled", pool=pool)
    weights = [(made.path / "open_clip_model.safetensors").read_bytes() for made in (whole, resumed, shuffled)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def draws(pool: Pool, sampler: dict[str, str], rank: int, world_size: int) -> list[list[list[Any]]]:
    """List the uid and a hash of the crop of each sample of each step in a process."""
    stage = plan(**SETTINGS, seed=3, loading={"sampler": sampler})
    data, _ = training_data(stage, [pool], build_clip(stage.model, seed=0), {"en": 1.0})
    steps = []
    for step in data.steps(0, 8, rank=rank, world_size=world_size):
        images = [image.sum().item() for batch in step for image in batch.inputs.images]
        steps.append(
            [[key, image] for key, image in zip([k for batch in step for k in batch.keys], images, strict=True)]
        )
    return steps


def test_two_processes_draw_the_samples_and_crops_of_one(tmp_path: Path) -> None:
    pool = make_sites(tmp_path / "pool")
    run_in_group(__file__, "draw", tmp_path, {"pool": pool})
    for number, sampler in enumerate(SAMPLERS):
        whole = draws(pool, sampler, 0, 1)
        ranks = [json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in range(2)]
        assert [first + second for first, second in zip(*ranks, strict=True)] == whole
        assert len({key for step in whole for key, _ in step}) > 4


def test_a_training_refuses_a_weight_that_is_no_number(tmp_path: Path) -> None:
    pool = make_sites(tmp_path / "pool")
    with pytest.raises(UserError, match="sampler: expected a number of at least 0 in column 'site', got 'north'"):
        run_stage(plan(**SETTINGS, loading={"sampler": {"weighted": "site"}}), tmp_path / "run", pool=pool)


def main(root: Path, inputs: dict[str, str]) -> None:
    """Write the draws of this process for each sampler."""
    with distributed(Runtime(device="cpu")) as world:
        for number, sampler in enumerate(SAMPLERS):
            mine = draws(Pool.load(Path(inputs["pool"])), sampler, world.rank, 2)
            (root / f"{number}-{world.rank}.json").write_text(json.dumps(mine))


if __name__ == "__main__":
    main(Path(sys.argv[2]), json.loads(sys.argv[3]))
