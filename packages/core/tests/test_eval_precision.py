"""Evaluations in bf16 round the features only, keep caches apart, and run in a training as they do alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vfm.eval.base import ModelEvaluation
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.encode.encoders import _features_key
from vfm.models import PooledVision, build_clip, build_vision, vision_preprocess

IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)) for seed in range(6)]


def check(exact: torch.Tensor, rounded: torch.Tensor) -> None:
    assert exact.dtype == rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert float((exact * rounded).sum(dim=1).min()) > 0.995
    torch.testing.assert_close(rounded.norm(dim=1), torch.ones(len(rounded)))


def test_features_of_a_clip_model_are_rounded_and_of_unit_length():
    clip = build_clip("ViT-Pico-8-32", seed=0)
    half = replace(clip, precision="bf16")
    check(clip.encode_images(IMAGES), half.encode_images(IMAGES))
    check(clip.encode_texts(["a red circle", "a star"]), half.encode_texts(["a red circle", "a star"]))
    assert next(half.module.parameters()).dtype == torch.float32


def test_features_of_an_encoder_are_rounded_and_have_a_key_of_their_own():
    module = build_vision("eva02_pico_patch8_32", seed=0).eval()
    encoder = PooledVision(module, vision_preprocess(module))
    check(encoder.encode_images(IMAGES), replace(encoder, precision="bf16").encode_images(IMAGES))


def test_caches_of_features_are_kept_apart(monkeypatch):
    monkeypatch.setattr("vfm.eval.encode.encoders.checkpoint_hash", lambda checkpoint: "hash")
    preprocess = build_clip("ViT-Pico-8-32", seed=0).preprocess
    keys = {_features_key(SimpleNamespace(), preprocess, precision) for precision in ("fp32", "bf16")}
    assert len(keys) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_in_training_is_evaluated_in_the_configured_precision(monkeypatch, precision):
    seen = []
    monkeypatch.setattr(ModelEvaluation, "scored", lambda self, ctx, encoder: seen.append(encoder))
    clip = build_clip("ViT-Pico-8-32", seed=0)
    ZeroShot(name="z", data="val", precision=precision).scored(None, clip)
    assert seen[0].precision == precision
    assert clip.precision == "fp32"
    assert seen[0].module is clip.module
