"""LoRA changes nothing at first, only its weights are trained, and merging adds their product to the old weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from diva_families import FAMILIES, family_clip
from diva_toy import same, weights
from vfm.models import ClipModel, LowRank, load_clip, vision_tower
from vfm_diva.tune.condition import encode


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ClipModel:
    return load_clip(family_clip(request.param, tmp_path))


def images(model: ClipModel) -> torch.Tensor:
    side = model.preprocess.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_every_change_gets_a_gradient_and_the_merged_tower_equals_the_changed_one(model: ClipModel) -> None:
    visual = model.module.visual
    old = deepcopy(visual)
    changes = LowRank(vision_tower(visual.requires_grad_(False)).blocks, rank=2, alpha=4)
    torch.testing.assert_close(encode(visual, images(model)), encode(old, images(model)))
    trained = {name: param for name, param in visual.named_parameters() if param.requires_grad}
    layers = [name for name, _ in visual.named_modules() if name.endswith(".base_layer")]
    assert len(layers) == 4 * vision_tower(model).depth
    assert len(trained) == 2 * len(layers)
    assert all("lora_" in name for name in trained)
    gradients = torch.autograd.grad(encode(visual, images(model)).square().sum(), list(trained.values()))
    assert all(gradient.abs().max() > 0 for name, gradient in zip(trained, gradients, strict=True) if "lora_B" in name)
    with torch.no_grad():
        for param in trained.values():
            param.add_(0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(1)))
    changed = encode(visual, images(model))
    deltas = {
        name.replace(".lora_B.default.weight", ""): 2 * param @ trained[name.replace("lora_B", "lora_A")]
        for name, param in trained.items()
        if "lora_B" in name
    }
    changes.merge()
    torch.testing.assert_close(encode(visual, images(model)), changed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed, encode(old, images(model)), atol=1e-3)
    before, after = weights(old), weights(visual)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {_plain(name) for name in deltas}
    for name, delta in deltas.items():
        torch.testing.assert_close(after[_plain(name)] - before[_plain(name)], delta.detach(), atol=1e-6, rtol=1e-3)


def _plain(layer: str) -> str:
    """Return the name of a layer's weight in the original tower."""
    return f"{layer}.weight".replace(".attn.in_proj.weight", ".attn.in_proj_weight")


def test_the_weights_below_the_changes_are_unchanged_bit_for_bit(model: ClipModel) -> None:
    visual = model.module.visual
    old = deepcopy(visual)
    changes = LowRank(vision_tower(visual.requires_grad_(False)).blocks, rank=2, alpha=2)
    for step in range(3):
        with torch.no_grad():
            for name, param in visual.named_parameters():
                if "lora_B" in name:
                    param.add_(0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(step)))
        encode(visual, images(model)).sum().backward()
    with torch.no_grad():
        for name, param in visual.named_parameters():
            if "lora_B" in name:
                param.zero_()
    changes.merge()
    assert same(weights(old), weights(visual))
