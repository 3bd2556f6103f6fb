"""Fine-tuning of parts of an encoder, of several labels an image, with random erasing, and with EVA's probing head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from eva_toy import context
from test_eva_finetune import (
    encoder,
    losses,
    run,
    stage,
    train as labelled_train,  # noqa: F401  (a fixture)
)
from vfm.base import error_lines
from vfm.data.labeled.tags import write_tags
from vfm.interfaces import load_plugins, stage_types
from vfm.models import build_vision, load_vision, save_vision
from vfm.plugin import LabeledDataset, Preflight, TaggedImages, UserError
from vfm_eva import EvaFinetune
from vfm_eva.finetune.classifier import Classifier, LabeledImages
from vfm_eva.finetune.labeled_images import seeded_global_generators
from vfm_eva.finetune.normed_head import NormedHead

PLAIN = {"augmentation": {"rand_augment": None}, "ema_decay": None, "lr": 1e-2}


@pytest.fixture
def train(labelled_train: LabeledDataset) -> LabeledDataset:  # noqa: F811
    return labelled_train


def trained_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("trained", "free"),
    [
        ({"type": "frozen"}, {"head.", "fc_norm."}),
        ({"type": "last_blocks", "blocks": 1}, {"blocks.1.", "head.", "fc_norm."}),
        ({"type": "last_blocks", "blocks": 0}, {"head.", "fc_norm."}),
    ],
)
def test_only_the_parts_behind_the_frozen_ones_change(
    trained: Any, free: set[str], tmp_path: Path, train: LabeledDataset
) -> None:
    start = encoder(tmp_path / "encoder", num_classes=0)
    settings = {**PLAIN, "trained": trained}
    made = run(tmp_path / "run", settings, encoder=start, train=train)
    before, after = load_file(start.path / "model.safetensors"), load_file(made.path / "model.safetensors")
    shared = {name: value for name, value in before.items() if name in after}
    changed = trained_names(shared, after)
    assert {
        name.rpartition(".")[0].split(".attn")[0].split(".mlp")[0].split(".norm")[0] + "." for name in changed
    } <= free
    assert after["head.weight"].abs().max() > 0.01


def test_a_batch_norm_before_the_head_is_part_of_the_exported_head(tmp_path: Path, train: LabeledDataset) -> None:
    start = encoder(tmp_path / "encoder", num_classes=0)
    settings = {**PLAIN, "trained": {"type": "frozen"}, "head_norm": "batch", "global_pool": "token", "steps": 40}
    settings |= {"head_init_scale": 0.5, "label_smoothing": 0.0, "lr": 0.3, "drop_path": 0.0}
    settings |= {"optimizer": {"type": "sgd", "weight_decay": 0}, "global_batch_size": 32}
    made = run(tmp_path / "run", settings, encoder=start, train=train)
    assert isinstance(load_vision(made).head, torch.nn.Linear)
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) / 5 < 0.8 * curve[0]
    head = NormedHead(torch.nn.Linear(6, 3))
    features = 5 + 3 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        head(features)
    torch.testing.assert_close(head.eval().folded()(features), head(features), rtol=1e-4, atol=1e-4)


LAST_BLOCK = {"type": "last_blocks", "blocks": 1}
MIXED = {"rand_augment": None, "mixup": 0.8, "erasing": 1.0}
HEAD_ONLY = {"trained": {"type": "frozen"}, "head_norm": "batch", "drop_path": 0.0, "optimizer": {"type": "sgd"}}


@pytest.mark.parametrize(
    "settings",
    [
        {**HEAD_ONLY, "global_pool": "token"},
        {**HEAD_ONLY, "global_pool": "avg"},
        {**HEAD_ONLY, "trained": LAST_BLOCK, "augmentation": MIXED},
        {"drop_path": 0.0, "augmentation": {"rand_augment": None, "mixup": 0.8, "cutmix": 1.0}},
        {"drop_path": 0.0, "augmentation": {"rand_augment": None, "erasing": 1.0}},
    ],
    ids=["linear probe", "probe of the mean", "normed, mixed and erased", "mixed", "erased"],
)
def test_the_size_of_a_micro_batch_changes_a_training_by_rounding_only(
    settings: dict[str, Any], tmp_path: Path, train: LabeledDataset
) -> None:
    start = encoder(tmp_path / "encoder", num_classes=0)
    common = {**PLAIN, "lr": 0.3, "head_init_scale": 0.5, "optimizer": {"type": "sgd"}, "steps": 4, **settings}
    pairs = "mixup" in settings.get("augmentation", {})
    found = []
    for micro in (8, 2 if pairs else 3, 2 if pairs else 1):
        made = run(tmp_path / str(micro), {**common, "micro_batch_size": micro}, encoder=start, train=train)
        found.append(load_file(made.path / "model.safetensors"))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


PROCESS = """
import sys, torch, torch.distributed as dist
from vfm_eva.finetune.normed_head import NormedHead
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
head, features = NormedHead(torch.nn.Linear(6, 3)), 5 + 3 * torch.randn(8, 6)
share = features[4 * rank : 4 * rank + 4].clone().requires_grad_()
(head.of_step(share)[:, 0] ** 2).sum().backward()
torch.save([share.grad, head.norm.running_mean, head.norm.running_var], f"{sys.argv[2]}.{rank}")
dist.destroy_process_group()
"""


def test_the_norm_of_two_processes_is_that_of_all_samples(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    children = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(meeting)]) for rank in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    torch.manual_seed(0)
    head, features = NormedHead(torch.nn.Linear(6, 3)), 5 + 3 * torch.randn(8, 6)
    features.requires_grad_()
    (head(features)[:, 0] ** 2).sum().backward()
    found = [torch.load(f"{meeting}.{rank}") for rank in range(2)]
    torch.testing.assert_close(torch.cat([found[0][0], found[1][0]]), features.grad)
    for _, mean, var in found:
        torch.testing.assert_close(mean, head.norm.running_mean)
        torch.testing.assert_close(var, head.norm.running_var)


def tagged(folder: Path, images: LabeledDataset) -> TaggedImages:
    """Label the images by two of their class' properties."""
    names = ["circle", "square", "red", "blue"]
    rows = [[n % 2, 2 + n // 2 % 2] for n in range(images.num_samples)]
    folder.mkdir()
    write_tags(folder / "tags.parquet", rows)
    counts = [sum(label in row for row in rows) for label in range(4)]
    return TaggedImages.create(
        folder,
        data=images.reference(folder),
        num_samples=images.num_samples,
        class_names=names,
        num_images=counts,
    )


def test_several_labels_an_image_are_trained_by_binary_cross_entropy(tmp_path: Path, train: LabeledDataset) -> None:
    tags = tagged(tmp_path / "tags", train)
    start = encoder(tmp_path / "encoder", num_classes=0)
    made = run(tmp_path / "run", {**PLAIN, "steps": 2}, encoder=start, train=tags)
    assert made.num_classes == 4
    assert json.loads((made.path / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert losses(tmp_path / "run")[0] == pytest.approx(0.693, abs=0.02)  # of a head of nearly zero
    model = build_vision("vit_pico_patch8_32", num_classes=4, seed=0).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[True, False, True, False], [False, False, False, True], [True, True, True, True]])
    task = Classifier(model).eval()
    loss, metrics = task(LabeledImages(images, labels))
    logits = model(task.preprocess.pixels(images))
    own = -(labels * F.logsigmoid(logits) + ~labels * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(loss, own)
    assert metrics["label_accuracy"] == ((logits > 0) == labels).float().mean()


def test_a_head_of_several_labels_is_scored_during_its_training(tmp_path: Path, train: LabeledDataset) -> None:
    tags, start = tagged(tmp_path / "tags", train), encoder(tmp_path / "encoder", num_classes=0)
    kinds = stage_types(load_plugins())
    evaluation = {"tasks": [{"kind": "eval.classify", "data": "train"}], "every_steps": 2}
    settings = stage(**PLAIN, steps=2).model_dump() | {"evaluation": evaluation}
    config = EvaFinetune.model_validate(settings, context=kinds)
    config.run(context(tmp_path / "out", encoder=start, train=tags))
    lines = [json.loads(line) for line in (tmp_path / "out/artifact/metrics.jsonl").read_text().splitlines()]
    assert "val/mean_average_precision" in {key for line in lines for key in line}


def test_erasing_is_timms_in_training_and_absent_in_evaluation() -> None:
    model = build_vision("vit_pico_patch8_32", num_classes=2, seed=0)
    task = Classifier(model, erasing=1.0).train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = LabeledImages(images, torch.tensor([0, 1, 0, 1]), torch.tensor([5, 6, 7, 8]))
    before = torch.get_rng_state()
    loss, _ = task(inputs)
    assert torch.equal(torch.get_rng_state(), before)
    pixels = task.preprocess.pixels(images)
    for image, seed in zip(pixels, (5, 6, 7, 8), strict=True):
        torch.manual_seed(seed)
        with seeded_global_generators(seed):
            RandomErasing(1.0, mode="pixel", device="cpu")(image)
    torch.testing.assert_close(loss, F.cross_entropy(model(pixels), inputs.labels))
    plain = F.cross_entropy(model.eval()(task.preprocess.pixels(images)), inputs.labels)
    torch.testing.assert_close(task.eval()(inputs)[0], plain)


def test_mistakes_are_one_line_in_the_preflight(tmp_path: Path, train: LabeledDataset) -> None:
    start, tags = encoder(tmp_path / "encoder", num_classes=0), tagged(tmp_path / "tags", train)
    known = Preflight({}, {"encoder": start.path, "train": tags.path})
    with pytest.raises(UserError, match=r"trained\.blocks: expected 0 to 2, the blocks of Eva; got 3"):
        stage(trained={"type": "last_blocks", "blocks": 3}).preflight(known)
    with pytest.raises(UserError, match="mixup and cutmix mix single classes"):
        stage(augmentation={"mixup": 0.8}).preflight(known)
    stage(trained={"type": "frozen"}).preflight(known)
    with pytest.raises(ValidationError, match="expected global_batch_size >= 2"):
        stage(head_norm="batch", global_batch_size=1)
    two_heads = {"depth": 1, "image_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    distilled = save_vision(build_vision("deit_tiny_distilled_patch16_224", **two_heads), tmp_path / "distilled")
    with pytest.raises(UserError, match="head_norm: batch is for encoders with one head"):
        stage(head_norm="batch", global_pool="token").preflight(Preflight({}, {"encoder": distilled.path}))
    with pytest.raises(ValidationError) as caught:
        stage(freeze_blocks=1)
    lines = [line for _, line in error_lines(caught.value, EvaFinetune)]
    assert lines == ["unknown key; did you mean 'trained: {type: last_blocks}'?"]
