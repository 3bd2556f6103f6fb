"""The loss of weighted pairs is the weighted mean of the whole batch, in micro-batches and in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from clip_world import VIT, Random, assert_twins, gradients, halves, in_processes, plan, run_stage, tiny_task, train
from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.plugin import Pool, UserError

LOSSES = ["info_nce", "distinct_info_nce"]


@pytest.mark.parametrize("micro_batch_size", [3, 5, None])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_have_the_gradient_of_the_weighted_mean(
    tmp_path: Path, loss: str, micro_batch_size: int | None
) -> None:
    task = tiny_task(VIT, loss)
    train(tmp_path, plan(micro_batch_size=micro_batch_size), task, Random(VIT, 12, weighted=True))
    assert_twins(gradients(task), VIT, micro_batch_size or 12, loss=loss, weighted=True)


def test_two_processes_have_the_gradient_of_the_weighted_mean(tmp_path: Path) -> None:
    jobs = []
    for loss in LOSSES:
        for size in (4, None):
            job = {"config": VIT, "loss": loss, "weighted": True, "micro_batch_size": size, "folder": f"{loss}-{size}"}
            jobs.append(job)
    in_processes(2, tmp_path, jobs)
    for job in jobs:
        ours = load_file(tmp_path / str(job["folder"]) / "gradients.safetensors")
        assert_twins(ours, VIT, job["micro_batch_size"] or 6, world_size=2, loss=job["loss"], weighted=True)


def weighted_pool(directory: Path, weights: list[object]) -> Pool:
    """Write pairs of two colours, each with a weight in its json."""
    rows = []
    for number, weight in enumerate(weights):
        image = halves(f"hsl({number * 30}, 80%, 50%)", f"hsl({number * 30 + 90}, 80%, 40%)")
        record = {"caption": f"number {number}", "weight": weight}
        rows.append((f"{number}", {"png": image, "json": json.dumps(record).encode()}))
    directory.mkdir(parents=True)
    shards = [Shard.of(directory / "0.tar", write_tar(directory / "0.tar", rows))]
    spec = DatasetSpec(texts={"en": "json.caption"}, columns=["json.weight"])
    return Pool.create(directory, num_samples=write_index(directory, shards, spec), languages=["en"])


def losses(folder: Path, weights: list[object], **settings: object) -> list[float]:
    stage = plan(data="pool", steps=2, global_batch_size=12, augmentation={"crop_scale": None}, **settings)
    run_stage(stage, folder / "run", pool=weighted_pool(folder / "pool", weights))
    lines = map(json.loads, (folder / "run/part/metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if line["split"] == "train"]


def test_a_stage_reads_the_weights_of_its_pool(tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain", [1] * 12)
    equal = losses(tmp_path / "equal", [3] * 12, weight="weight")
    rising = losses(tmp_path / "rising", [*map(str, range(12))], weight="weight")  # text, as csv has it
    assert equal == pytest.approx(plain, rel=1e-6)
    assert abs(rising[0] - plain[0]) > 1e-3
    again = losses(tmp_path / "again", [*range(12)], weight="weight", micro_batch_size=5)
    assert again == pytest.approx(rising, rel=1e-5)


def test_wrong_weights_are_bad_samples_and_absent_columns_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing_value"):
        losses(tmp_path / "a", [-1] * 12, weight="weight", loading={"max_bad_fraction": 0.0})
    expected = r"clip: weight: pool: no column 'wieght'; `columns` of the data's stage names weight$"
    with pytest.raises(UserError, match=expected):
        losses(tmp_path / "b", [1] * 12, weight="wieght")


@pytest.mark.parametrize("loss", [{"type": "siglip"}, {"type": "info_nce", "chunk_size": 4}])
def test_losses_without_weights_refuse_them(loss: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="weight: expected loss info_nce or distinct_info_nce without chunk_size"):
        plan(weight="weight", loss=loss)


def test_weights_of_zero_leave_pairs_out_as_queries(tmp_path: Path) -> None:
    task = tiny_task(VIT)
    data = Random(VIT, 12, weighted=True)
    inputs = data.batch(0).inputs
    assert inputs.weight is not None
    weight = torch.cat([torch.ones(6), torch.zeros(6)])
    full = task(type(inputs)(inputs.images, inputs.tokens, weight=weight))[0]
    image = task.module.encode_image(task.model.pixels(inputs.images), normalize=True)
    text = task.module.encode_text(inputs.tokens, normalize=True)
    logits = task.logit_scale * image @ text.T
    rows = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal())[:6].mean() / 2
    torch.testing.assert_close(full, rows)
