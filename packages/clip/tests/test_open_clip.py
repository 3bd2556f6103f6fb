"""Training equals open_clip's, step by step, and open_clip loads the trained model."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from clip_world import EVA, VIT, Random, make_pool, plan, run_stage, tiny_task, train
from vfm.models import build_clip, find_format, load_clip, save_clip
from vfm.plugin import Event
from vfm_clip import ClipTrain
from weight_decay_rule import assert_decays, decays

TIMM_VIT = {**EVA, "vision_cfg": {**EVA["vision_cfg"], "timm_model_name": "vit_pico_patch8_32"}}
SETTINGS = {"steps": 8, "schedule": {"warmup_steps": 3}, "lr": 2e-3}


class Halved(DistillClipLoss):
    """With half the weight of the distillation, as ours has it in `LOSSES`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = super().forward(*args, **kwargs)
        return {**parts, "distill_loss": parts["distill_loss"] / 2}


class Batches:
    """What `train_one_epoch` reads: all micro-batches of an epoch, and TensorBoard's writer for what it logs."""

    def __init__(self, data: Random, steps: int, micro_batches: int) -> None:
        self.data, self.steps, self.cuts = data, steps, micro_batches
        self.num_batches, self.num_samples = steps * micro_batches, steps * data.size
        self.dataloader, self.epoch = self, 0
        self.logged: defaultdict[str, list[float]] = defaultdict(list)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            inputs = self.data.batch(step).inputs
            images = normalize(inputs.images / 255, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
            yield from zip(images.chunk(self.cuts), inputs.tokens.chunk(self.cuts), strict=True)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert step == len(self.logged[name])
        self.logged[name].append(value)


def train_open_clip(
    model: nn.Module, data: Random, plan: ClipTrain, loss: str, teacher: nn.Module | None, micro_batches: int
) -> dict[str, list[float]]:
    """Train by the installed release's own `train_one_epoch`, in two epochs; return what it logs."""
    decayed = [p for name, p in model.named_parameters() if decays(name, p, model)]
    plain = [p for name, p in model.named_parameters() if not decays(name, p, model)]
    parts: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    settings = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": plan.optimizer.weight_decay}
    optimizer = torch.optim.AdamW(parts, lr=plan.lr, **settings)
    schedule = cosine_lr(optimizer, plan.lr, plan.schedule.warmup_steps, plan.num_steps)
    losses = {"info_nce": ClipLoss(), "siglip": SigLipLoss(), "distillation": Halved()}
    arguments = SimpleNamespace(
        device="cpu", precision="fp32", distill=teacher is not None, accum_freq=micro_batches, skip_scheduler=False,
        horovod=False, grad_clip_norm=plan.optimizer.grad_clip_norm, rank=0, local_rank=0, world_size=1, wandb=False,
        batch_size=data.size // micro_batches, log_every_n_steps=1,
    )  # fmt: skip
    for module in (model, teacher):
        if module:
            module.output_dict = True  # type: ignore[assignment]
    batches = Batches(data, plan.num_steps // 2, micro_batches)
    for epoch in range(2):
        train_one_epoch(
            model, {"train": batches}, losses[loss], epoch, optimizer, None, schedule, teacher, arguments, batches
        )
    return batches.logged


@pytest.mark.parametrize(
    ("config", "loss", "micro_batches"),
    [
        (VIT, "info_nce", 1),
        (VIT, "info_nce", 3),
        (EVA, "info_nce", 1),
        (EVA, "info_nce", 2),
        (VIT, "siglip", 1),
        (VIT, "siglip", 2),
        (EVA, "distillation", 1),
    ],
)
def test_losses_temperatures_and_weights_are_those_of_open_clips_train_one_epoch(
    tmp_path: Path, config: dict[str, Any], loss: str, micro_batches: int
) -> None:
    # In micro-batches the release counts the temperature's gradient once for each: Adam does not mind, a norm would.
    clipping = {} if micro_batches > 1 else {"optimizer": {"grad_clip_norm": 1.0}}
    settings = plan(**SETTINGS, **clipping, micro_batch_size=12 // micro_batches)
    task, data = tiny_task(config, loss), Random(config, settings.global_batch_size)
    with torch.no_grad():
        task.log_scale.fill_(math.log(99.9 if loss == "info_nce" else 10))  # so that it is clamped
    peer, teacher = deepcopy(task.module), deepcopy(task.teacher.module) if task.teacher else None
    train(tmp_path, settings, task, data)
    logged = train_open_clip(peer, data, settings, loss, teacher, micro_batches)
    rows = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows] == pytest.approx(logged["train/loss"], rel=1e-5)
    assert [row["train/logit_scale"] for row in rows] == pytest.approx(logged["train/scale"], rel=2e-6)
    assert [row["train/lr"] for row in rows] == logged["train/lr"]
    theirs = dict(peer.named_parameters())
    for name, weight in task.module.named_parameters():
        error = (weight - theirs[name]).detach().double().abs()
        if name.endswith("in_proj_bias"):  # attention ignores the keys' bias: its gradient is a rounding error
            error = torch.cat([error.chunk(3)[0], error.chunk(3)[2]])
        assert error.square().mean().sqrt() < 1e-6, name
        assert error.max() < 5e-5, name  # Adam divides a gradient near 0 by its own size
    assert logged["train/loss"][-1] != pytest.approx(logged["train/loss"][0], rel=0.05)  # it changed
    if loss == "siglip":
        assert rows[-1]["train/logit_bias"] != rows[0]["train/logit_bias"]


@pytest.mark.parametrize("config", [VIT, EVA], ids=["vit", "eva"])
def test_weight_decay_is_by_the_rule_of_open_clips_main_branch(config: dict[str, Any]) -> None:
    assert_decays(tiny_task(config))


LEARNED: dict[str, dict[str, Any]] = {
    "eva": {"model": EVA, "vision": {"patch_dropout": 0.5, "drop_path": 0.2}},
    "siglip": {"loss": {"type": "siglip"}},
    "larger": {"image_size": 32, "vision": {"patch_dropout": 0.5}},
    "larger_timm": {"model": TIMM_VIT, "image_size": 64},
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_trained_checkpoint_loads_in_open_clip_with_equal_features(tmp_path: Path, name: str) -> None:
    pool = make_pool(tmp_path / "pool")
    stage = plan(steps=3, global_batch_size=16, **LEARNED[name])
    checkpoint, _ = run_stage(stage, tmp_path, pool=pool)
    peer, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{checkpoint.path}")
    peer.eval()
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(3)]
    texts = ["red on lime", "black on white"]
    with torch.no_grad():
        theirs = peer.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pictures]), normalize=True)
        theirs_text = peer.encode_text(open_clip.get_tokenizer(f"local-dir:{checkpoint.path}")(texts), normalize=True)
    ours = load_clip(checkpoint)
    torch.testing.assert_close(ours.encode_images(pictures), theirs)
    torch.testing.assert_close(ours.encode_texts(texts), theirs_text)
    assert (peer.logit_bias is not None) == (name == "siglip")
    for scalar in ("logit_scale", *(["logit_bias"] if name == "siglip" else [])):
        assert torch.equal(getattr(peer, scalar), getattr(ours.module, scalar))
    size = stage.image_size or ours.config["vision_cfg"]["image_size"]
    assert (checkpoint.embed_dim, checkpoint.image_size, checkpoint.context_length) == (24, size, 8)


@pytest.mark.parametrize("changes", [{"image_size": 32, "vision": {"patch_dropout": 0.5}}, {"quick_gelu": True}])
def test_a_trained_checkpoint_exported_for_transformers_has_equal_features_there(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = {**VIT, "quick_gelu": changes.pop("quick_gelu", False)}
    start = save_clip(build_clip(model, seed=4), tmp_path / "start")
    stage = plan(model=None, init="start", steps=3, global_batch_size=16, **changes)
    checkpoint, _ = run_stage(stage, tmp_path, pool=make_pool(tmp_path / "pool"), start=start)
    ours = load_clip(checkpoint)
    find_format("hf", ours, "clip").write(ours, tmp_path / "hf")
    peer = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    assert peer.config.vision_config.image_size == checkpoint.image_size
    draw = np.random.default_rng(0)
    pixels = ours.pixels(draw.integers(0, 256, (3, checkpoint.image_size, checkpoint.image_size, 3), dtype=np.uint8))
    tokens = ours.tokenize(["red on lime", "black on white"])
    with torch.no_grad():
        theirs = peer(pixel_values=pixels, input_ids=tokens)
        image, text, scale = ours.module(pixels, tokens)
    torch.testing.assert_close(theirs.image_embeds, image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.text_embeds, text, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.logits_per_image, scale * image @ text.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "plain"), [(32, True), (48, False)])
def test_a_tower_that_open_clip_itself_cannot_build_is_reported_once(tmp_path: Path, size: int, plain: bool) -> None:
    events: list[Event] = []
    stage = plan(model=EVA, image_size=size, steps=1)
    run_stage(stage, tmp_path, send=events.append, pool=make_pool(tmp_path / "pool"))
    warnings = [event.data["message"] for event in events if event.type == "warning"]
    assert len(warnings) == (not plain)
    assert all("vfm can load this checkpoint, open_clip itself cannot" in warning for warning in warnings)
