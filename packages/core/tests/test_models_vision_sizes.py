"""One way to read any vision transformer: several layers at once, at any size, beside timm's own resizing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models import build_clip, build_vision, patch_features, vision_features, vision_tower

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "image_size": 32, "num_classes": 0}
ENCODERS: dict[str, dict[str, Any]] = {
    "learned positions": {"model": "vit_base_patch16_224", "patch_size": 8, **TINY},
    "positions without the class token": {"model": "deit3_small_patch16_224", "patch_size": 8, **TINY},
    "registers, no class token": {"model": "vit_medium_patch16_reg4_gap_256", "patch_size": 8, **TINY},
    "distilled": {"model": "deit_tiny_distilled_patch16_224", "patch_size": 8, **TINY},
    "EVA-02": {"model": "eva02_tiny_patch14_224", "patch_size": 8, **TINY},
    "DINOv3": {"model": "vit_small_patch16_dinov3", "patch_size": 8, **TINY},
    "PE": {"model": "vit_pe_core_tiny_patch16_384", "patch_size": 8, **TINY},
    "mixed rotary": {"model": "vit_small_patch16_rope_mixed_224", "patch_size": 8, **TINY},
    "pooling head": {"model": "vit_base_patch16_siglip_224", "patch_size": 8, **TINY},
}
WIDE = (16, 48)


def encoder(name: str) -> nn.Module:
    model = build_vision(**ENCODERS[name], seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # away from tiny layer scales and zero positions
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def images(size: tuple[int, int] = WIDE) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ENCODERS)
def test_another_size_equals_timms_resizing(name: str) -> None:
    model = encoder(name)
    before = {key: value.clone() for key, value in (*model.named_parameters(), *model.named_buffers())}
    (tokens,) = vision_features(model, images(), norm=False)
    resized = copy.deepcopy(model)
    resized.set_input_size(WIDE)
    maps = resized.forward_intermediates(images(), indices=[2], intermediates_only=True)[0]
    assert tokens.grid == (2, 6)
    torch.testing.assert_close(tokens.maps, maps)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    # and back at its own size
    assert vision_features(model, images((32, 32)))[0].grid == (4, 4)


STEMS = {"vit_tiny_r_s16_p8_224": 32, "vitamin_small_224": 16, "vit_base_mci_224": 16}


@pytest.mark.parametrize("name", STEMS)
def test_patches_behind_a_convolutional_stem_are_timms_at_every_size(name: str) -> None:
    model = build_vision(name, depth=2, image_size=96, num_classes=0, seed=0).eval()
    assert vision_tower(model).patch_size == (STEMS[name], STEMS[name])
    resized = copy.deepcopy(model)
    for size in ((96, 96), (64, 128)):
        (tokens,) = vision_features(model, images(size), norm=False)
        resized.set_input_size(size)
        maps = resized.forward_intermediates(images(size), indices=[1], intermediates_only=True)[0]
        assert tokens.grid == (size[0] // STEMS[name], size[1] // STEMS[name])
        torch.testing.assert_close(tokens.maps, maps)
    with pytest.raises(UserError, match="must have sides that are multiples of the patch size"):
        vision_features(model, images((40, 96)))


@pytest.mark.parametrize("name", ENCODERS)
def test_layers_of_one_pass_equal_those_read_alone(name: str) -> None:
    model = encoder(name)
    last, first = vision_features(model, images(), layers=(-1, 0))
    for tokens, layer in ((last, 2), (first, 0)):
        assert torch.equal(tokens.patches, patch_features(model, images(), layer=layer, projected=False))
    assert last.prefix.shape[1] == model.num_prefix_tokens
    assert vision_tower(model).has_class_token == (model.cls_token is not None)


@pytest.mark.parametrize("name", ["learned positions", "EVA-02"])
def test_positions_are_trained_at_another_size(name: str) -> None:
    model = encoder(name)
    vision_features(model, images())[0].patches.square().sum().backward()
    assert model.pos_embed.grad.abs().max() > 0
    assert torch.isfinite(model.pos_embed.grad).all()


def test_size_resizes_the_images_first() -> None:
    model = encoder("EVA-02")
    (tokens,) = vision_features(model, images((20, 50)), size=WIDE)
    resized = torch.nn.functional.interpolate(images((20, 50)), WIDE, mode="bicubic", antialias=True)
    assert torch.equal(tokens.patches, vision_features(model, resized)[0].patches)


def test_open_clips_tower_takes_another_size() -> None:
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    clip = build_clip({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, seed=0)
    clip.module.eval()
    (tokens,) = vision_features(clip, images((48, 48)), norm=False)
    larger = build_clip({"embed_dim": 24, "vision_cfg": {**vision, "image_size": 48}, "text_cfg": text}, seed=0)
    state = clip.module.state_dict()
    rows = state["visual.positional_embedding"]
    planes = rows[1:].T.reshape(1, 32, 4, 4)
    planes = torch.nn.functional.interpolate(planes, (6, 6), mode="bicubic", antialias=True)
    state["visual.positional_embedding"] = torch.cat([rows[:1], planes.flatten(2)[0].T])
    larger.module.load_state_dict(state)
    (expected,) = vision_features(larger.module.eval(), images((48, 48)), norm=False)
    torch.testing.assert_close(tokens.patches, expected.patches)
    assert vision_features(clip, images())[0].grid == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        (ENCODERS["EVA-02"], (20, 32), "multiples of the patch size 8 x 8; got 20 x 32 pixels"),
        (ENCODERS["DINOv3"], (20, 32), "multiples of the patch size 8 x 8; got 20 x 32 pixels"),
        ({"model": "beit_base_patch16_224", "patch_size": 8, **TINY}, WIDE, "relative positions are for 32 x 32"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(arguments: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        vision_features(build_vision(**arguments, seed=0), images(size))
    assert "\n" not in str(caught.value)
