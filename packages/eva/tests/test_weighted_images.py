"""Fine-tuning on weighted images: the weighted mean of the whole batch, whatever the micro-batches."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from eva_toy import context
from test_eva_finetune import encoder, stage
from vfm.data import Batch, DatasetSpec, Shard, write_index, write_tar
from vfm.models import build_vision
from vfm.plugin import LabeledDataset, UserError
from vfm_eva.finetune.classifier import Classifier, LabeledImages


def inputs(several: bool) -> LabeledImages:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 3, (12,), generator=draw)
    if several:
        labels = torch.rand(12, 3, generator=draw) > 0.5  # type: ignore[assignment]
    return LabeledImages(images, labels, None, torch.rand(12, generator=draw))


def micro_batches(whole: LabeledImages, size: int) -> list[Batch[LabeledImages]]:
    parts = []
    for start in range(0, 12, size):
        rows = slice(start, start + size)
        assert whole.weights is not None
        part = LabeledImages(whole.images[rows], whole.labels[rows], None, whole.weights[rows])
        parts.append(Batch(part, [str(number) for number in range(len(part.images))]))
    return parts


@pytest.mark.parametrize("size", [5, 3, 12])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_micro_batches_have_the_gradient_of_the_weighted_mean(size: int, several: bool) -> None:
    whole = inputs(several)
    task = Classifier(build_vision("eva02_pico_patch8_32", num_classes=3, seed=0)).eval()
    torch.nn.init.normal_(task.model.head.weight, generator=torch.Generator().manual_seed(1))
    metrics = task.accumulate(
        lambda batch, *_: task(batch.inputs), micro_batches(whole, size), torch.Tensor.backward, lambda index: None
    )
    ours = {name: weight.grad.clone() for name, weight in task.model.named_parameters() if weight.grad is not None}
    task.zero_grad()
    logits = task.model(task.preprocess.pixels(whole.images))
    if several:
        rows = F.binary_cross_entropy_with_logits(logits, whole.labels.float(), reduction="none").mean(1)
    else:
        rows = F.cross_entropy(logits, whole.labels, reduction="none")
    assert whole.weights is not None
    loss = (rows * whole.weights).sum() / whole.weights.sum()
    loss.backward()
    torch.testing.assert_close(metrics["loss"], loss.detach())
    plain = {name: weight.grad for name, weight in task.model.named_parameters() if weight.grad is not None}
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def weighted_images(folder: Path, weights: list[float]) -> LabeledDataset:
    rows = []
    for number, weight in enumerate(weights):
        buffer = BytesIO()
        Image.new("RGB", (32, 32), ["red", "blue"][number % 2]).save(buffer, "PNG")
        record = json.dumps({"weight": weight}).encode()
        rows.append((str(number), {"png": buffer.getvalue(), "cls": str(number % 2).encode(), "json": record}))
    folder.mkdir(parents=True)
    shards = [Shard.of(folder / "0.tar", write_tar(folder / "0.tar", rows))]
    spec = DatasetSpec(label_key="cls", class_names=["red", "blue"], columns=["json.weight"])
    return LabeledDataset.create(folder, num_samples=write_index(folder, shards, spec), class_names=spec.class_names)


def test_a_stage_reads_the_weights_of_its_data(tmp_path: Path) -> None:
    start = encoder(tmp_path / "encoder")
    losses = {}
    for name, weights in (("plain", [1.0] * 8), ("rising", [*map(float, range(8))])):
        data = weighted_images(tmp_path / name / "data", weights)
        for size in (None, 3):
            folder = tmp_path / name / str(size)
            run = stage(weight="weight", micro_batch_size=size, drop_path=0, ema_decay=None)
            run.run(context(folder, encoder=start, train=data))
            lines = map(json.loads, (folder / "artifact/metrics.jsonl").read_text().splitlines())
            losses[name, size] = [line["train/loss"] for line in lines if line["split"] == "train"]
    assert losses["rising", 3] == pytest.approx(losses["rising", None], rel=1e-4)
    assert losses["rising", None][1:] != pytest.approx(losses["plain", None][1:], rel=1e-4)
    with pytest.raises(UserError, match="tuned: weight: train: no column 'w'"):
        stage(weight="w").run(context(tmp_path / "wrong", encoder=start, train=data))


@pytest.mark.parametrize("settings", [{"augmentation": {"mixup": 0.8}}, {"head_norm": "batch"}])
def test_weights_need_single_images(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="weight: expected single images"):
        stage(weight="weight", **settings)
