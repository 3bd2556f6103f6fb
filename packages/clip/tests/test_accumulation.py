"""Micro-batches have the gradient of the whole batch, in one process and in two, with dropout and drop path too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vfm_clip.task
from clip_world import (
    EVA,
    VIT,
    Random,
    assert_twins,
    gradients,
    in_processes,
    noisy,
    plan,
    tiny_task,
    train,
    twin_gradients,
)
from vfm.plugin import UserError
from vfm.train import Metrics
from vfm_clip.feature_metrics import feature_spread
from vfm_clip.losses import ClipFeatures
from vfm_clip.task import ClipTask

# SGD: Adam divides by the root of squared gradients, which for weights without a gradient are rounding errors.
SHARDED = {
    "runtime": {"device": "cpu", "parallel": "fsdp"},
    "steps": 3,
    "lr": 0.1,
    "optimizer": {"type": "sgd", "grad_clip_norm": 0.5},
    "ema_decay": 0.5,
}
MODELS = {"vit": VIT, "eva": EVA, "noisy_vit": noisy(VIT), "noisy_eva": noisy(EVA)}


def one_step(folder: Path, config: dict[str, Any], task: ClipTask | None = None, **changes: Any) -> ClipTask:
    task = task or tiny_task(config)
    train(folder, plan(**changes), task)
    return task


@pytest.mark.parametrize("micro_batch_size", [3, 5])  # 5 leaves a smaller one
@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_have_the_gradient_of_one_graph_over_all(
    tmp_path: Path, name: str, micro_batch_size: int
) -> None:
    ours = one_step(tmp_path, MODELS[name], micro_batch_size=micro_batch_size)
    assert_twins(gradients(ours), MODELS[name], micro_batch_size)


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_the_spread_of_features_is_that_of_the_log_step_and_is_not_computed_in_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None
) -> None:
    calls: list[int] = []

    def counting(*features: Tensor) -> Metrics:
        calls.append(len(features[0]))
        return feature_spread(*features)

    def logged(log_every: int) -> list[dict[str, float]]:
        settings = plan(steps=4, log_every=log_every, micro_batch_size=micro_batch_size)
        events = train(tmp_path / str(log_every), settings, tiny_task(VIT))
        return [event.data["values"] for event in events if event.type == "metrics"]

    each = logged(1)
    monkeypatch.setattr(vfm_clip.task, "feature_spread", counting)
    for line, pair in zip(logged(2), (each[:2], each[2:]), strict=True):
        for name, value in line.items():
            if name.startswith(("train/mutual_cosine", "train/effective_rank", "train/similarity")):
                assert value == pair[1][name]
            elif name.startswith(("train/loss", "train/repeated", "train/logit_scale")):
                assert value == pytest.approx((pair[0][name] + pair[1][name]) / 2)
    assert calls == [12, 12]
    expected = {"train/effective_rank/text", "train/mutual_cosine/image", "train/repeated/captions"}
    assert expected | {f"train/similarity/{which}_pairs" for which in ("right", "wrong")} <= set(each[0])


class Distance(nn.Module):
    """Compute a loss without the temperature."""

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        return (features.image - features.text).square().sum(dim=1).mean(), {}


def test_a_loss_without_a_temperature_runs_in_micro_batches(tmp_path: Path) -> None:
    found = []
    for micro_batch_size in (None, 5):
        task = tiny_task(VIT)
        task.loss = Distance()
        one_step(tmp_path / str(micro_batch_size), VIT, task, micro_batch_size=micro_batch_size)
        found.append(gradients(task))
    assert found[0]["logit_scale"] == 0  # not missing: DDP would wait for it
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["vit", "eva"])
def test_micro_batches_have_the_gradient_and_the_loss_of_the_big_batch(tmp_path: Path, name: str) -> None:
    small = one_step(tmp_path / "small", MODELS[name], micro_batch_size=3)
    big = one_step(tmp_path / "big", MODELS[name])
    assert_twins(gradients(small), MODELS[name], 12, plain=gradients(big))
    small_line, big_line = (
        json.loads((tmp_path / folder / "part" / "metrics.jsonl").read_text()) for folder in ("small", "big")
    )
    assert small_line.pop("split") == big_line.pop("split") == "train"
    assert small_line == pytest.approx(big_line, rel=1e-6, abs=1e-7)  # of mean cosines near zero


def test_noise_differs_between_micro_batches() -> None:
    config = noisy(EVA)
    calm, noise = twin_gradients(EVA, 3), twin_gradients(config, 3)
    assert not torch.allclose(calm["text.text_projection"], noise["text.text_projection"], atol=1e-4)
    task = tiny_task(config).train()
    inputs = Random(config, 4).batch(0).inputs
    first, second = (task.encode(inputs)[1]["image"] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("changes", [{"grad_checkpointing": True}, {"chunk_size": 5}])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_options_that_save_memory_do_not_change_gradients(
    tmp_path: Path, changes: dict[str, Any], micro_batch_size: int | None
) -> None:
    saving = tiny_task(noisy(EVA), chunk_size=changes.get("chunk_size"))
    if changes.get("grad_checkpointing"):
        saving.module.set_grad_checkpointing()
    one_step(tmp_path / "saving", EVA, saving, micro_batch_size=micro_batch_size)
    plain = one_step(tmp_path / "plain", noisy(EVA), micro_batch_size=micro_batch_size)
    assert_twins(gradients(saving), noisy(EVA), micro_batch_size or 12, plain=gradients(plain))


def test_a_nan_stops_the_step_and_only_its_micro_batch_is_named(tmp_path: Path) -> None:
    task = tiny_task(VIT)
    data = Random(VIT, 12)
    token = int(data.batch(0).inputs.tokens[7, 0])
    with torch.no_grad():
        task.module.token_embedding.weight[token] = float("nan")
    with pytest.raises(UserError, match=r"the loss is not finite at step 1;.*samples: 0-6, 0-7, 0-8$"):
        train(tmp_path, plan(micro_batch_size=3), task, data)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compute the gradients of all models in two processes."""
    root = tmp_path_factory.mktemp("two")
    jobs = [
        {"config": config, "micro_batch_size": size, "folder": f"{name}-{size}"}
        for name, config in MODELS.items()
        for size in (2, 4, None)
    ]
    jobs += [
        {"config": VIT, "loss": loss, "micro_batch_size": 2, "folder": f"fsdp-{loss}", "settings": SHARDED}
        for loss in ("info_nce", "siglip", "distillation")
    ]
    in_processes(2, root, jobs)
    return root


@pytest.mark.parametrize("micro_batch_size", [2, 4, None])
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_gradient_of_one_graph_over_both(
    two: Path, name: str, micro_batch_size: int | None
) -> None:
    ours = load_file(two / f"{name}-{micro_batch_size}" / "gradients.safetensors")
    assert_twins(ours, MODELS[name], micro_batch_size or 6, world_size=2)


@pytest.mark.parametrize("loss", ["info_nce", "siglip", "distillation"])
def test_two_processes_that_shard_the_model_train_as_one(tmp_path: Path, two: Path, loss: str) -> None:
    task = tiny_task(VIT, loss)
    settings = {**SHARDED, "runtime": {"device": "cpu"}}
    train(tmp_path, plan(**settings), task)
    ours, expected = (
        [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]
        for folder in (two / f"fsdp-{loss}", tmp_path)
    )
    for line, one in zip(ours, expected, strict=True):
        for name in ("train/loss", "train/grad_norm"):  # others, such as the rank of features, are of a process' share
            assert line[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6)
    weights = load_file(two / f"fsdp-{loss}" / "weights.safetensors")
    torch.testing.assert_close(weights, dict(task.module.state_dict()), rtol=1e-4, atol=1e-6)
