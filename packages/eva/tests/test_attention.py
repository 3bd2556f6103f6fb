"""Attention weights are those that the module's own, fused kernel works with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from eva_toy import STUDENT, run
from vfm import UserError
from vfm.eval.semantic import GAP, SIDE
from vfm.models import build_vision
from vfm.panels import ImagesPanel, load_panels
from vfm_eva.attention import attention_maps, attention_weights


def drawn(name: str) -> Any:
    """An encoder whose attention is far from even."""
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
def test_weights_times_values_are_what_the_fused_attention_gives(name, layer):
    encoder = drawn(name)
    attention = encoder.blocks[layer].attn
    pixels = torch.randn(2, 3, *encoder.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, keywords: Any, output: Any) -> None:
        seen.update(inputs=inputs, keywords=keywords, output=output)

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    assert attention.fused_attn
    with torch.no_grad():
        encoder.forward_features(pixels)
    handle.remove()
    weights = attention_weights(encoder, pixels, layer=layer)
    assert attention.fused_attn
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    (tokens,) = seen["inputs"]
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
    torch.testing.assert_close(mixed, seen["output"], atol=1e-4, rtol=1e-4)


def test_rotary_positions_are_in_them():
    encoder, even = drawn(STUDENT), torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        encoder.pos_embed.zero_()
    weights = attention_weights(encoder, even)  # all patches are alike but for their place
    assert weights[0, :, 1:, 1:].std() > 1e-3


def test_maps_are_of_the_class_token_and_of_the_patches():
    weights = torch.zeros(1, 2, 5, 5)
    weights[0, :, 0, 2] = torch.tensor([1.0, 0.5])
    weights[0, :, 1:, 4] = 1.0
    of_class, of_patches = attention_maps(weights, 1).values()
    assert of_class.tolist() == [[0, 0.75, 0, 0]]
    assert of_patches.tolist() == [[0, 0, 0, 1]]
    (alone,) = attention_maps(weights, 0).values()
    assert alone.shape == (1, 5)


def test_attention_of_another_kind_is_refused_in_one_line():
    model = timm.create_model("vit_little_patch16_reg4_gap_256", num_classes=0, depth=1)
    model.blocks[-1].attn = torch.nn.Identity()
    with pytest.raises(UserError, match="VisionTransformer: Identity shows no attention weights"):
        attention_weights(model, torch.zeros(1, 3, 256, 256))


def test_a_run_leaves_a_sheet_of_attention(tmp_path, pool, teacher):
    made = run(tmp_path, {"steps": 2}, pool=pool, teacher=teacher)
    (sheet,) = (panel for panel in load_panels(made.path) if panel.title.startswith("Where the last block looks"))
    assert isinstance(sheet, ImagesPanel)
    assert len(sheet.pictures) == 9
    with Image.open(made.path / sheet.pictures[0].file) as picture:
        assert picture.size == (3 * SIDE + 2 * GAP, SIDE)
        assert len(np.unique(np.asarray(picture)[:, -SIDE:].reshape(-1, 3), axis=0)) <= 16  # one colour a patch
