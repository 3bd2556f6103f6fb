"""Training equals open_clip's, step by step, and open_clip loads the trained model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from open_clip_train.scheduler import cosine_lr
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from clip_world import EVA, VIT, Random, make_pool, plan, run_stage, tiny_task, train
from vfm.models import build_clip, find_format, load_clip, save_clip
from vfm.plugin import Event
from vfm_clip import ClipTrain

TIMM_VIT = {**EVA, "vision_cfg": {**EVA["vision_cfg"], "timm_model_name": "vit_pico_patch8_32"}}
SETTINGS = {"steps": 12, "schedule": {"warmup_steps": 4}, "lr": 2e-3, "log_every": 1}


def groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the decayed parameters and the others, by open_clip's rule, and timm's for its encoders."""
    exempt = set(model.no_weight_decay())
    if trunk := getattr(model.visual, "trunk", None):
        exempt |= {f"visual.trunk.{name}" for name in trunk.no_weight_decay()}
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in exempt]
    plain = [p for name, p in model.named_parameters() if p.ndim < 2 or name in exempt]
    return decayed, plain


def criterion(loss: str, teacher: nn.Module | None) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Return a model's loss as in open_clip_train: the sum of the parts that open_clip's loss returns."""
    losses = {"info_nce": ClipLoss(), "siglip": SigLipLoss(), "distillation": DistillClipLoss()}

    def total(model: nn.Module, images: Tensor, tokens: Tensor) -> Tensor:
        given = model(images, tokens)
        if teacher:
            with torch.no_grad():
                given = (*given, *teacher(images, tokens))
        parts = losses[loss](*given)
        return parts[0] + 0.5 * parts[1] if isinstance(parts, tuple) else parts  # the weight of ours in LOSSES

    return total


def open_clip_losses(
    model: nn.Module, data: Random, plan: ClipTrain, loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> tuple[list[float], list[float]]:
    """Return the losses and temperatures of open_clip_train's loop in fp32."""
    decayed, plain = groups(model)
    parts: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    settings = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": plan.optimizer.weight_decay}
    optimizer = torch.optim.AdamW(parts, lr=plan.lr, **settings)
    schedule = cosine_lr(optimizer, plan.lr, plan.schedule.warmup_steps, plan.num_steps)
    losses, scales = [], []
    model.train()
    for step in range(plan.num_steps):
        inputs = data.batch(step).inputs
        images = normalize(inputs.images / 255, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        schedule(step)
        optimizer.zero_grad()
        scales.append(model.logit_scale.exp().item())
        loss = loss_of(model, images, inputs.tokens)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses, scales


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize(
    ("config", "loss"), [(VIT, "info_nce"), (EVA, "info_nce"), (VIT, "siglip"), (EVA, "distillation")]
)
def test_losses_and_temperatures_are_those_of_open_clips_loop(
    tmp_path: Path, config: dict[str, Any], loss: str, micro_batch_size: int | None
) -> None:
    task, settings = tiny_task(config, loss), plan(**SETTINGS, micro_batch_size=micro_batch_size)
    with torch.no_grad():
        task.log_scale.fill_(math.log(99.9 if loss == "info_nce" else 10))  # so that it is clamped
    peer, data = deepcopy(task.module), Random(config, settings.global_batch_size)
    loss_of = criterion(loss, task.teacher.module if task.teacher else None)
    train(tmp_path, settings, task, data)
    losses, scales = open_clip_losses(peer, data, settings, loss_of)
    rows = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows] == pytest.approx(losses, rel=2e-5)
    assert [row["train/logit_scale"] for row in rows] == pytest.approx(scales, rel=1e-6)
    assert losses[-1] != pytest.approx(losses[0], rel=0.05)  # it changed
    if loss == "siglip":
        assert rows[-1]["train/logit_bias"] != rows[0]["train/logit_bias"]


@pytest.mark.parametrize("config", [VIT, EVA], ids=["vit", "eva"])
def test_weight_decay_is_that_of_open_clip_and_timm(config: dict[str, Any]) -> None:
    task = tiny_task(config)
    ours = [{id(p) for p in group.params} for group in task.parameter_groups()]
    assert ours == [{id(p) for p in group} for group in groups(task.module)]


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
