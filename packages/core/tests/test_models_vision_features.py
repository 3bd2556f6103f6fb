"""Patch features must agree with the model's own outputs for an image."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models import (
    ClipModel,
    build_clip,
    build_vision,
    cls_and_patch_tokens,
    feature_width,
    grid_size,
    image_tokens,
    patch_features,
)

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NATIVE = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TOWERS = {
    "open_clip token": NATIVE,
    "open_clip avg": {**NATIVE, "pool_type": "avg"},
    "open_clip avg, norm after": {**NATIVE, "pool_type": "avg", "final_ln_after_pool": True},
    "timm token": {
        "image_size": 32,
        "timm_model_name": "eva02_pico_patch8_32",
        "timm_pool": "token",
        "timm_proj": None,
    },
    "timm avg": {"image_size": 32, "timm_model_name": "eva02_pico_patch8_32", "timm_pool": "avg", "timm_proj": None},
    "timm linear": {
        "image_size": 32,
        "timm_model_name": "vit_pico_patch8_32",
        "timm_pool": "token",
        "timm_proj": "linear",
    },
    "timm mlp": {"image_size": 32, "timm_model_name": "vit_pico_patch8_32", "timm_pool": "avg", "timm_proj": "mlp"},
}


def clip_with(vision: dict[str, object]) -> ClipModel:
    model = build_clip({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}, seed=0)
    model.module.eval()
    for parameter in model.module.parameters():  # away from the tiny initial heads, zero biases and unit norms
        nn.init.normal_(parameter, std=0.3)
    return model


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("vision", TOWERS.values(), ids=TOWERS)
def test_image_token_equals_the_models_own_embedding(vision: dict[str, object]) -> None:
    model = clip_with(vision)
    image_token, patches = cls_and_patch_tokens(model, images())
    torch.testing.assert_close(image_token, model.module.encode_image(images()))
    assert patches.shape == (2, 16, 24)
    assert torch.equal(patches, patch_features(model, images()))
    assert feature_width(model) == 24


@pytest.mark.parametrize("vision", TOWERS.values(), ids=TOWERS)
def test_image_tokens_agree_with_the_separate_functions(vision: dict[str, object]) -> None:
    model = clip_with(vision)
    image = image_tokens(model, images())
    torch.testing.assert_close(image.embeds, model.module.encode_image(images()))
    assert torch.equal(image.patches, patch_features(model, images()))
    assert image.whole is image.embeds
    before = cls_and_patch_tokens(model, images(), projected=False)[0]
    torch.testing.assert_close(image.feature, before)


def test_whole_is_the_pooled_feature_where_patches_are_not_projected() -> None:
    pooled_by_attention = {"image_size": 32, "timm_model_name": "vit_pico_patch8_32", "timm_pool": "map"}
    model = clip_with({**pooled_by_attention, "timm_proj": None})
    image = image_tokens(model, images())
    torch.testing.assert_close(image.embeds, model.module.encode_image(images()))
    assert (image.embeds.shape[1], image.whole.shape[1], image.patches.shape[2]) == (24, 64, 64)
    assert image.whole is image.feature


def test_projected_patches_of_open_clip_are_the_projected_tokens_of_the_tower() -> None:
    model = clip_with({**NATIVE, "output_tokens": True})
    _, tokens = model.module.visual(images())  # open_clip's own: after ln_post, before the projection
    torch.testing.assert_close(patch_features(model, images()), tokens @ model.module.visual.proj)
    torch.testing.assert_close(patch_features(model, images(), projected=False), tokens)


def test_mean_of_projected_patches_is_the_image_feature_of_a_linear_average_pooled_model() -> None:
    """Mean and projection commute without a norm between them."""
    model = build_vision("vit_pico_patch8_32", num_classes=24, global_pool="avg", fc_norm=False, seed=0).eval()
    torch.testing.assert_close(patch_features(model, images()).mean(dim=1), model(images()))


def test_patches_of_timm_are_the_tokens_after_the_final_norm() -> None:
    model = build_vision("eva02_pico_patch8_32", global_pool="token", seed=0).eval()
    torch.testing.assert_close(
        patch_features(model, images(), projected=False), model.forward_features(images())[:, 1:]
    )


def test_earlier_layer_returns_the_output_of_that_block() -> None:
    model = build_vision("vit_pico_patch8_32", global_pool="token", seed=0).eval()
    outputs: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda block, arguments, out: outputs.append(out))
    features = patch_features(model, images(), layer=0, projected=False)
    torch.testing.assert_close(features, model.norm(outputs[0])[:, 1:])
    assert torch.equal(features, patch_features(model, images(), layer=-2, projected=False))


def test_normalized_features_have_unit_length_and_the_same_direction() -> None:
    model = clip_with(NATIVE)
    plain, unit = patch_features(model, images()), patch_features(model, images(), normalize=True)
    torch.testing.assert_close(unit, F.normalize(plain, dim=-1))


@pytest.mark.parametrize("vision", TOWERS.values(), ids=TOWERS)
def test_gradients_reach_the_first_layer_through_both_tokens(vision: dict[str, object]) -> None:
    model = clip_with(vision)
    first = next(
        p for name, p in model.module.visual.named_parameters() if name.endswith(("conv1.weight", "proj.weight"))
    )
    for token in (0, 1):
        (gradient,) = torch.autograd.grad(cls_and_patch_tokens(model, images())[token].square().sum(), first)
        assert gradient.abs().max() > 0


def test_grid_depends_on_the_image_size_and_patches_are_row_by_row() -> None:
    model = build_vision("vit_pico_patch8_32", image_size=48, seed=0).eval()
    assert grid_size(model) == (6, 6)
    nn.init.zeros_(model.pos_embed)
    for block in model.blocks:  # without attention, a patch depends only on itself
        nn.init.zeros_(block.attn.proj.weight)
    image = torch.zeros(1, 3, 48, 48)
    image[:, :, 8:16, 40:48] = torch.rand(3, 8, 8)  # row 1, column 5
    change = (patch_features(model, image, projected=False) - patch_features(model, image * 0, projected=False)).norm(
        dim=-1
    )
    assert change[0].nonzero().flatten().tolist() == [1 * 6 + 5]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("vit_base_patch16_siglip_224", depth=1, embed_dim=32, num_heads=2), "pooling head"),
        (lambda: build_vision("eva02_pico_patch8_32"), "has no projection"),
        (lambda: timm.create_model("resnet18"), "no patch tokens"),
    ],
)
def test_model_without_projected_patches_is_a_one_line_error(model: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        patch_features(model(), torch.zeros(1, 3, 224, 224))
    assert "\n" not in str(caught.value)


def test_pooling_head_gives_the_normed_tokens_and_the_pooled_feature() -> None:
    model = timm.create_model("vit_base_patch16_siglip_224", img_size=32, depth=1, embed_dim=32, num_heads=2).eval()
    image_token, patches = cls_and_patch_tokens(model, images(), projected=False)
    torch.testing.assert_close(patches, model.forward_features(images()))
    torch.testing.assert_close(image_token, model.forward_head(model.forward_features(images()), pre_logits=True))


def test_missing_layer_and_dropped_patches_are_refused() -> None:
    model = build_vision("vit_pico_patch8_32", patch_drop_rate=0.5, seed=0)
    with pytest.raises(UserError, match="layer 2 is not one of its 2 blocks"):
        patch_features(model, images(), layer=2, projected=False)
    with pytest.raises(ValueError, match="expected 16 patches, got 8"):
        patch_features(model.train(), images(), projected=False)
