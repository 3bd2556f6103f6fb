"""LoRA: nothing at first, its weights alone are trained, and what is merged is the old weights plus the product."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from diva_families import FAMILIES, family_clip
from diva_toy import same, weights
from vfm.models.clip import ClipModel, load_clip
from vfm.models.patch_features import vision_tower
from vfm_diva.condition import embed
from vfm_diva.low_rank import LowRank, linear_layers


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ClipModel:
    return load_clip(family_clip(request.param, tmp_path))


def images(model: ClipModel) -> torch.Tensor:
    side = model.preprocess.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_gradient_reaches_every_change_and_the_merged_tower_is_the_changed_one(model: ClipModel) -> None:
    visual = model.module.visual
    old = deepcopy(visual)
    changes = LowRank(visual, rank=2, alpha=4)
    torch.testing.assert_close(embed(visual, images(model)), embed(old, images(model)))
    trained = {name: param for name, param in visual.named_parameters() if param.requires_grad}
    layers = [name.removesuffix(".base_layer") for name in linear_layers(visual) if "lora_" not in name]
    assert len(layers) == 4 * vision_tower(model).depth
    assert len(trained) == 2 * len(layers)
    assert all("lora_" in name for name in trained)
    gradients = torch.autograd.grad(embed(visual, images(model)).square().sum(), list(trained.values()))
    assert all(gradient.abs().max() > 0 for name, gradient in zip(trained, gradients, strict=True) if "lora_B" in name)
    with torch.no_grad():
        for param in trained.values():
            param.add_(0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(1)))
    changed = embed(visual, images(model))
    deltas = {
        name.replace(".lora_B.default.weight", ""): 2 * param @ trained[name.replace("lora_B", "lora_A")]
        for name, param in trained.items()
        if "lora_B" in name
    }
    changes.merge()
    torch.testing.assert_close(embed(visual, images(model)), changed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed, embed(old, images(model)), atol=1e-3)
    before, after = weights(old), weights(visual)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {_plain(name) for name in deltas}
    for name, delta in deltas.items():
        torch.testing.assert_close(after[_plain(name)] - before[_plain(name)], delta.detach(), atol=1e-6, rtol=1e-3)


def _plain(layer: str) -> str:
    """The weight of a layer by the name that the plain tower gives it."""
    return f"{layer}.weight".replace(".attn.in_proj.weight", ".attn.in_proj_weight")


def test_what_lies_below_the_changes_stays_bit_for_bit(model: ClipModel) -> None:
    visual = model.module.visual
    old = deepcopy(visual)
    changes = LowRank(visual, rank=2, alpha=2)
    for step in range(3):
        with torch.no_grad():
            for name, param in visual.named_parameters():
                if "lora_B" in name:
                    param.add_(0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(step)))
        embed(visual, images(model)).sum().backward()
    with torch.no_grad():
        for name, param in visual.named_parameters():
            if "lora_B" in name:
                param.zero_()
    changes.merge()
    assert same(weights(old), weights(visual))
