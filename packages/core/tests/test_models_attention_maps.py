"""Attention weights must be those that the module's own, fused kernel uses."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from vfm import UserError
from vfm.models import attention_map, attention_weights, build_clip, build_vision

STUDENT = "eva02_pico_patch8_32"  # 4 x 4 patches


def random_encoder(name: str) -> Any:
    """Build an encoder whose attention is far from uniform."""
    encoder: Any = build_vision(name, num_classes=0, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    for block in encoder.blocks:
        for parameter in block.attn.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return encoder


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize(
    "name", [STUDENT, "eva02_mini_patch16_clip_128", "vit_pico_patch8_32", "eva02_tiny_patch14_224"]
)
def test_weights_times_values_equal_the_fused_attention(name, layer):
    encoder = random_encoder(name)
    attention = encoder.blocks[layer].attn
    pixels = torch.randn(2, 3, *encoder.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    recorded: dict[str, Any] = {}

    def record(module: Any, inputs: Any, keywords: Any, output: Any) -> None:
        recorded.update(inputs=inputs, keywords=keywords, output=output)

    handle = attention.register_forward_hook(record, with_kwargs=True)
    assert attention.fused_attn
    with torch.no_grad():
        encoder.forward_features(pixels)
    handle.remove()
    weights = attention_weights(encoder, pixels, layer=layer)
    assert attention.fused_attn
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    (tokens,) = recorded["inputs"]
    size, length, _ = tokens.shape
    heads = attention.num_heads
    with torch.no_grad():
        if attention.qkv is None:
            values = attention.v_proj(tokens)
        else:
            bias = attention.qkv.bias
            if bias is None:
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            values = torch.nn.functional.linear(tokens, attention.qkv.weight, bias).chunk(3, dim=-1)[2]
        values = values.reshape(size, length, heads, -1).transpose(1, 2)
        mixed = (weights @ values).transpose(1, 2).reshape(size, length, -1)
        mixed = attention.proj(attention.norm(mixed))
    torch.testing.assert_close(mixed, recorded["output"], atol=1e-4, rtol=1e-4)


def test_weights_include_rotary_positions():
    encoder, constant = random_encoder(STUDENT), torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        encoder.pos_embed.zero_()
    weights = attention_weights(encoder, constant)  # patches differ only in their position
    assert weights[0, :, 1:, 1:].std() > 1e-3


def test_map_is_the_class_token_row_or_else_the_mean_over_patches():
    weights = torch.zeros(1, 2, 5, 5)
    weights[0, :, 0, 2] = torch.tensor([1.0, 0.5])
    weights[0, :, 1:, 4] = 1.0
    assert attention_map(weights, 4).tolist() == [[0, 0.75, 0, 0]]
    assert attention_map(weights[..., 1:, 1:], 4).tolist() == [[0, 0, 0, 1]]


def test_weights_times_values_equal_the_attention_of_open_clips_own_tower():
    clip = build_clip("ViT-Nano-8-32", seed=0)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention = clip.module.visual.transformer.resblocks[-1].attn
    recorded: dict[str, Any] = {}
    handle = attention.register_forward_hook(
        lambda module, inputs, output: recorded.update(tokens=inputs[0], output=output[0])
    )
    weights = attention_weights(clip, pixels)
    handle.remove()
    values = torch.nn.functional.linear(recorded["tokens"], attention.in_proj_weight, attention.in_proj_bias).chunk(
        3, -1
    )[2]
    values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mixed = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, recorded["output"], atol=1e-5, rtol=1e-4)


def test_a_block_that_is_not_there_is_a_user_error():
    clip = build_clip("ViT-Pico-8-32", seed=0)
    with pytest.raises(UserError, match="ViT-Pico-8-32: layer 2 is not one of its 2 blocks"):
        attention_weights(clip, torch.zeros(1, 3, 32, 32), layer=2)


def test_unsupported_attention_layer_is_a_user_error():
    model = timm.create_model("vit_little_patch16_reg4_gap_256", num_classes=0, depth=1)
    model.blocks[-1].attn = torch.nn.Identity()
    with pytest.raises(UserError, match="VisionTransformer: cannot read attention weights of Identity"):
        attention_weights(model, torch.zeros(1, 3, 256, 256))
