"""The features of probes and the probes themselves, beside the papers' protocols typed again, on the same features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from eval_world import tiny_clip
from vfm.base import UserError
from vfm.eval.classify.linear_probe import fit_linear_probe
from vfm.eval.classify.probe_features import ProbeFeatures, probe_features, with_probe_features
from vfm.eval.classify.stages import LinearProbe, ProbeInput
from vfm.eval.classify.sweep import NormedLinearHead, ProbeSchedule, train_heads
from vfm.models import PooledVision, build_clip, build_vision, load_clip, vision_preprocess

VIT: dict[str, Any] = {"embed_dim": 32, "depth": 5, "num_heads": 2, "patch_size": 8, "image_size": 32}


def encoder(name: str = "vit_small_patch14_reg4_dinov2", **arguments: Any) -> Any:
    model = build_vision(name, num_classes=0, seed=0, **{**VIT, **arguments}).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # so that tokens differ and are not of one length
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def dinov2_input(model: Any, images: Tensor, blocks: int, *, average: bool) -> Tensor:
    """Return the linear probe's input as DINOv2's evaluation makes it, from timm's own forward pass."""
    tokens, found = model._pos_embed(model.patch_embed(images)), []
    for block in model.blocks:
        tokens = block(tokens)
        normed = model.norm(tokens)
        found.append((normed[:, model.num_prefix_tokens :], normed[:, 0]))
    chosen = found[-blocks:]
    output = torch.cat([class_token for _, class_token in chosen], dim=-1)
    return torch.cat((output, torch.mean(chosen[-1][0], dim=1)), dim=-1) if average else output


def test_a_clip_model_with_a_convolutional_stem_is_probed_before_its_projection() -> None:
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "timm_model_name": "vitamin_small_224", "timm_pool": "avg", "timm_proj": "linear"}
    clip = build_clip({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, seed=0)
    clip.module.eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = probe_features(clip, images, ProbeInput())
    torch.testing.assert_close(clip.module.visual.head(features), clip.module.encode_image(images))
    assert probe_features(clip, images, ProbeInput(pool="mean", layers=2)).shape == (2, 2 * 384)


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("pool", ["cls", "cls_mean"])
def test_features_are_those_of_dinov2s_protocol(layers: int, pool: str) -> None:
    model = encoder()
    chosen = ProbeInput.model_validate({"layers": layers, "pool": pool})
    expected = dinov2_input(model, pixels(), layers, average=pool == "cls_mean")
    torch.testing.assert_close(probe_features(model, pixels(), chosen), expected)


def test_default_features_are_the_models_own_and_not_of_unit_length(tmp_path: Path) -> None:
    """Check the case that was wrong: lengths differ between images, and they are not removed."""
    model = encoder("eva02_tiny_patch14_224")
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (0, 120, 255)]
    pooled = PooledVision(model, vision_preprocess(model))
    raw = with_probe_features({"model": pooled}, LinearProbe(name="p", train="t", data="d").features)["model"]
    inputs = pooled.preprocess.inputs(images, torch.device("cpu"))
    expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    found = raw.encode_images(images)
    torch.testing.assert_close(found, expected)
    assert (found.norm(dim=-1) - 1).abs().min() > 0.1
    unit = ProbeFeatures(pooled, ProbeInput(normalize=True)).encode_images(images)
    torch.testing.assert_close(unit, pooled.encode_images(images))
    clip = load_clip(tiny_clip(tmp_path / "clip", 0))
    before = ProbeFeatures(clip, ProbeInput()).encode_images(images)
    projected = ProbeFeatures(clip, ProbeInput(projected=True)).encode_images(images)
    torch.testing.assert_close(before @ clip.module.visual.proj, projected)
    torch.testing.assert_close(F.normalize(projected, dim=-1), clip.encode_images(images))


def test_other_features_have_other_keys_in_the_cache() -> None:
    model = encoder()
    pooled = PooledVision(model, vision_preprocess(model), features_key="key")
    keys = {ProbeFeatures(pooled, ProbeInput(layers=n, pool="cls")).features_key for n in (1, 2, 4)}
    assert len(keys | {"key"}) == 4
    assert not ProbeFeatures(PooledVision(model, vision_preprocess(model)), ProbeInput()).features_key


def test_features_that_a_model_lacks_are_refused_in_a_line() -> None:
    without = encoder("vit_medium_patch16_reg4_gap_256")
    with pytest.raises(UserError, match="has no class token; set features"):
        probe_features(without, pixels(), ProbeInput(pool="cls"))
    with pytest.raises(UserError, match="at most 5, its blocks; got 6"):
        probe_features(without, pixels(), ProbeInput(pool="mean", layers=6))
    with pytest.raises(ValidationError, match="needs pool cls, mean or cls_mean"):
        ProbeInput(layers=4)


def made_features(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 60 features of unequal lengths and scales, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8, generator=generator)
    noise = torch.randn(60, 8, generator=generator)
    return (centres[labels] + noise) * torch.rand(60, 1, generator=generator) * torch.logspace(-1, 1, 8), labels


def eva_linear_probe(features: Tensor, labels: Tensor, lr: float, epochs: int, batch: int, seed: int) -> Tensor:
    """Train EVA's linear probe in plain tensors and float64: batch norm without affine part, a linear layer, LARS.

    Return the scores of all images. Restated from MAE's and EVA's `LARS` and `run_linprobing`: momentum 0.9, no weight
    decay, trust ratio 0.001 * |w| / |g| on matrices; warm-up over a tenth and half a cosine per step.
    """
    x, y = features.double(), labels
    weight = torch.empty(3, x.shape[1]).normal_(0, 0.01, generator=torch.Generator().manual_seed(seed)).double()
    bias, mean, var = torch.zeros(3).double(), torch.zeros(x.shape[1]).double(), torch.ones(x.shape[1]).double()
    velocity_w, velocity_b = torch.zeros_like(weight), torch.zeros_like(bias)
    order_of, per_epoch = np.random.default_rng(seed), math.ceil(len(x) / batch)
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            order = order_of.permutation(np.arange(len(x)))
        rows = torch.from_numpy(order[step % per_epoch :: per_epoch])
        own_mean, own_var = x[rows].mean(0), x[rows].var(0, unbiased=False)
        mean = 0.9 * mean + 0.1 * own_mean
        var = 0.9 * var + 0.1 * x[rows].var(0, unbiased=True)
        normed = (x[rows] - own_mean) / (own_var + 1e-6).sqrt()
        error = (torch.softmax(normed @ weight.T + bias, dim=1) - F.one_hot(y[rows], 3)) / len(rows)
        gradient_w, gradient_b = error.T @ normed, error.sum(0)
        warmup, total = max(1, epochs * per_epoch // 10), epochs * per_epoch
        rate = lr * (
            (step + 1) / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        )
        gradient_w = gradient_w * 0.001 * weight.norm() / gradient_w.norm()
        velocity_w, velocity_b = 0.9 * velocity_w + gradient_w, 0.9 * velocity_b + gradient_b
        weight, bias = weight - rate * velocity_w, bias - rate * velocity_b
    return (x - mean) / (var + 1e-6).sqrt() @ weight.T + bias


def test_lars_probe_equals_evas_typed_again_in_float64() -> None:
    features, labels = made_features()
    head = NormedLinearHead(8, 3, torch.Generator().manual_seed(5))
    train_heads([head], [3.0], features, labels, np.arange(60), ProbeSchedule("lars", (3.0,), 12, 20, seed=5))
    expected = eva_linear_probe(features, labels, 3.0, 12, 20, seed=5)
    torch.testing.assert_close(head.eval()(features).double(), expected, rtol=1e-3, atol=1e-4)


def test_lbfgs_probe_equals_clips_typed_again() -> None:
    """Check CLIP's protocol: scikit-learn's L-BFGS, the penalty of the best held-out accuracy, a fit of all images."""
    features, labels = (part.numpy() for part in made_features())
    fitted, held_out = np.arange(0, 45), np.arange(45, 60)
    penalties = (1e-3, 1e-2, 1e-1, 1.0)
    found = fit_linear_probe(
        (features[fitted], labels[fitted]), (features[held_out], labels[held_out]), penalties=penalties, max_iter=1000
    )
    mean, std = features[fitted].mean(0, dtype=np.float64), features[fitted].std(0, dtype=np.float64)
    scaled = (features - mean) / std
    accuracies = {}
    for penalty in penalties:
        model = LogisticRegression(C=1 / (penalty * len(fitted)), max_iter=1000, tol=1e-8)
        model.fit(scaled[fitted], labels[fitted])
        accuracies[penalty] = model.score(scaled[held_out], labels[held_out])
    assert found.validation_accuracy == pytest.approx(accuracies)
    best = max(sorted(penalties, reverse=True), key=accuracies.__getitem__)
    assert found.penalty == best
    final = LogisticRegression(C=1 / (best * 60), max_iter=1000, tol=1e-8).fit(scaled, labels)
    np.testing.assert_allclose(found.scores(features, 3), final.predict_log_proba(scaled), atol=2e-2)
