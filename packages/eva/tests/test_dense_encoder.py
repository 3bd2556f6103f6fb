"""Tests of the dense encoder: the rules of EVA-02's detection code, and what any encoder must keep."""

# B images, N tokens, D width, H heads

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.interpolate import interp1d
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import build_clip, build_vision, vision_features
from vfm.plugin import UserError
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.pyramid import SimpleFeaturePyramid
from vfm_eva.dense.relative import RelativePositions, beit_weights
from vfm_eva.dense.windows import from_windows, to_windows

ROUNDING = 1e-5


def randomised(model: nn.Module) -> Any:
    """Give all parameters random values, so that none is without effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def images(side: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# EVA-02's detection code, typed anew from its rules


def rotated(heads: Tensor, side: int) -> Tensor:
    """Rotate pairs of channels by the row, then by the column; a side is rescaled to the pre-training's 8 patches."""
    width = heads.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = (torch.arange(side) / side * 8)[:, None] * rates
    rows = angles[:, None].expand(side, side, -1)
    turned = torch.cat([rows, rows.transpose(0, 1)], dim=-1).reshape(side * side, -1)
    even, odd = heads[..., ::2], heads[..., 1::2]
    sin, cos = turned.sin(), turned.cos()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def attended(attn: Any, tokens: Tensor, side: int) -> Tensor:
    """Attend among the tokens of a square of patches."""
    batch, num_tokens, width = tokens.shape
    heads = (batch, num_tokens, attn.num_heads, -1)
    q, k, v = (layer(tokens).view(heads).transpose(1, 2) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = rotated(q, side), rotated(k, side)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(batch, num_tokens, width))


def detection_maps(model: Any, pixels: Tensor, window: int, global_blocks: tuple[int, ...]) -> Tensor:
    """Compute the last map: windows around the attention only, as detectron2 does."""
    x = model.patch_embed.proj(pixels).permute(0, 2, 3, 1)
    batch, side, _, width = x.shape
    learned = model.pos_embed[:, 1:].reshape(1, 8, 8, width).permute(0, 3, 1, 2)
    x = x + F.interpolate(learned, size=(side, side), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    for number, block in enumerate(model.blocks):
        normed = block.norm1(x)
        if number in global_blocks:
            branch = attended(block.attn, normed.reshape(batch, -1, width), side).view(x.shape)
        else:
            branch = torch.zeros_like(x)
            for top in range(0, side, window):
                for left in range(0, side, window):
                    place = (slice(None), slice(top, top + window), slice(left, left + window))
                    part = normed[place].reshape(batch, -1, width)
                    branch[place] = attended(block.attn, part, window).view(batch, window, window, width)
        x = x + branch
        mlp, normed = block.mlp, block.norm2(x)
        x = x + mlp.fc2(mlp.norm(F.silu(mlp.fc1_g(normed)) * mlp.fc1_x(normed)))
    return x.permute(0, 3, 1, 2)


def test_equals_eva_02s_detection_code() -> None:
    model = randomised(build_vision("eva02_mini_patch14_112"))
    encoder = DenseEncoder(model, window=4, global_blocks=(2, 5))
    with torch.no_grad():
        (maps,) = encoder(images(12 * 14))
        expected = detection_maps(model, images(12 * 14), 4, (2, 5))
    assert maps.shape == (2, 192, 12, 12)
    assert relative(maps, expected) < ROUNDING


def eva_with(rope: str) -> nn.Module:
    return Eva(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_reg_tokens=2, num_classes=0,
        use_rot_pos_emb=True, rope_type=rope,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["eva02_pico_patch8_32", "vit_pico_patch8_32", "mixed", "dinov3"])
def test_a_window_that_is_the_whole_grid_equals_the_plain_encoder(name: str) -> None:
    model = randomised(eva_with(name) if name in ("mixed", "dinov3") else build_vision(name))
    pixels = images(32)
    with torch.no_grad():
        plain = model.forward_intermediates(pixels, intermediates_only=True)
        maps = DenseEncoder(model, layers=(0, 1), window=4, prefix=True)(pixels)
        again = model.forward_intermediates(pixels, intermediates_only=True)
    for one, other, last in zip(maps, plain, again, strict=True):
        assert relative(one, other) < ROUNDING
        assert torch.equal(other, last)  # the encoder is unchanged


@pytest.mark.parametrize("name", ["ViT-Pico-8-32", "EVA02-Pico-8-32"])
def test_any_clip_tower_is_an_encoder(name: str) -> None:
    clip = build_clip(name, seed=0)
    randomised(clip.module)
    encoder = DenseEncoder(clip, layers=(-1, 0))
    with torch.no_grad():
        maps = encoder(images(32))
        expected = vision_features(clip, images(32), layers=(-1, 0), norm=False)
    for one, other in zip(maps, expected, strict=True):
        assert relative(one, other.maps) < ROUNDING
    assert not any(name.startswith("transformer") for name, _ in encoder.named_parameters())


def test_a_windowed_block_reads_its_own_window_only() -> None:
    encoder = DenseEncoder(randomised(build_vision("eva02_pico_patch8_32")), window=2, layers=(0, -1))
    pixels, changed = images(48), images(48)
    changed[:, :, :16, 16:32] += 1  # the second of three windows in the first of three rows
    with torch.no_grad():
        before, after = encoder(pixels), encoder(changed)
    for one, other in zip(before, after, strict=True):
        differs = (one != other).any(dim=1)[0]
        assert differs[:2, 2:4].all()
        assert differs.sum() == 4


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_windows_are_joined_to_the_maps_they_were_cut_from(rows: int, columns: int, window: int, batch: int) -> None:
    grid = (rows * window, columns * window)
    tokens = torch.arange(batch * grid[0] * grid[1] * 2).view(batch, -1, 2)
    windows = to_windows(tokens, grid, window)
    assert windows.shape == (batch * rows * columns, window * window, 2)
    assert torch.equal(windows[0].view(window, window, 2), tokens.view(batch, *grid, 2)[0, :window, :window])
    assert torch.equal(from_windows(windows, grid, window), tokens)


def test_checkpointing_changes_no_gradient() -> None:
    model = randomised(build_vision("eva02_pico_patch8_32")).train()
    encoder = DenseEncoder(model, window=2, global_blocks=(1,))
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        encoder.zero_grad()
        encoder(images(32))[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_what_an_encoder_cannot_take_is_one_line() -> None:
    model = build_vision("eva02_pico_patch8_32")
    with pytest.raises(UserError, match=r"windows of 3 do not tile; .* multiples of 24 pixels"):
        DenseEncoder(model, window=3)(images(32))
    with pytest.raises(UserError, match="multiples of the patch size 8, got 36 x 36"):
        DenseEncoder(model)(images(36))
    with pytest.raises(UserError, match="prefix tokens belong to no window"):
        DenseEncoder(model, window=2, prefix=True)(images(32))
    with pytest.raises(UserError, match="global_blocks: Eva has 2 blocks, got 2"):
        DenseEncoder(model, window=2, global_blocks=(2,))
    with pytest.raises(UserError, match="has no patch tokens"):
        DenseEncoder(nn.Conv2d(3, 4, 1))


def test_the_pyramid_equals_its_layers_one_by_one() -> None:
    pyramid = randomised(SimpleFeaturePyramid(16, 8))
    maps = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(2))
    weights = list(pyramid.parameters())

    def norm(x: Tensor) -> Tensor:
        scale, shift = weights.pop(0), weights.pop(0)
        return F.layer_norm(x.permute(0, 2, 3, 1), scale.shape, scale, shift, 1e-6).permute(0, 3, 1, 2)

    def doubled(x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, weights.pop(0), weights.pop(0), stride=2)

    with torch.no_grad():
        found = pyramid(maps)
        for level, one in enumerate(found):
            x = doubled(F.gelu(norm(doubled(maps)))) if level == 0 else doubled(maps) if level == 1 else maps
            x = F.max_pool2d(x, 2) if level == 3 else x
            x = norm(F.conv2d(norm(F.conv2d(x, weights.pop(0))), weights.pop(0), padding=1))
            assert relative(one, x) < ROUNDING
    assert not weights
    assert [one.shape[-1] for one in found] == [24, 12, 6, 3]
    with pytest.raises(UserError, match="expected strides of 4, 8, 16 or 32 pixels for patches of 16, got 64"):
        SimpleFeaturePyramid(16, 8, (4, 64))


@pytest.mark.parametrize("trained_for", [4, 7])
@pytest.mark.parametrize("name", ["vit_pico_patch8_32", "eva02_pico_patch8_32"])
def test_relative_positions_equal_transformers(name: str, trained_for: int) -> None:
    vitdet = pytest.importorskip("transformers.models.vitdet.modeling_vitdet")
    model = randomised(build_vision({"architecture": name, "num_classes": 0}))
    block: Any = model.blocks[1]
    ours = randomised(RelativePositions(block, trained_for))
    config = vitdet.VitDetConfig(
        hidden_size=64, num_attention_heads=2, qkv_bias=True, use_relative_position_embeddings=True
    )
    theirs = vitdet.VitDetAttention(config, input_size=(trained_for, trained_for))
    attention = block.attn
    bias = getattr(attention, "q_bias", None)
    weights = {
        "qkv.weight": attention.qkv.weight,
        "qkv.bias": attention.qkv.bias if bias is None else torch.cat([bias, attention.k_bias, attention.v_bias]),
        "proj.weight": attention.proj.weight,
        "proj.bias": attention.proj.bias,
        "rel_pos_h": ours.rows,
        "rel_pos_w": ours.columns,
    }
    theirs.load_state_dict(weights)
    tokens = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(2))
    normed = block.norm1(tokens)
    with torch.no_grad():
        expected = theirs(normed.view(2, 4, 4, 64))[0].view(2, 16, 64)
        found = attention(normed, attn_mask=ours(block, tokens, (4, 4)))
        assert relative(found, expected) < ROUNDING
        assert relative(attention(normed), expected) > 0.01


def test_relative_positions_are_zero_at_first_and_need_a_norm_before_the_attention() -> None:
    model = build_vision("vit_pico_patch8_64", num_classes=0).eval()
    encoder = DenseEncoder(model, window=4, global_blocks=[1])
    positions = [RelativePositions(block, side) for block, side in zip(model.blocks, (4, 8), strict=True)]
    with torch.no_grad():
        assert relative(encoder(images(64), positions)[0], encoder(images(64))[0]) < ROUNDING
        positions[0].rows.normal_()
        assert relative(encoder(images(64), positions)[0], encoder(images(64))[0]) > 1e-4
    with pytest.raises(UserError, match=r"windows\.relative: expected blocks with a norm before"):
        RelativePositions(nn.Identity(), 4)


@pytest.mark.parametrize(("old", "new"), [(80, 96), (14, 20), (20, 14)])
def test_tables_resized_as_beits_equal_evas_formula(old: int, new: int) -> None:
    table = np.random.default_rng(0).standard_normal((2 * old - 1, 3))
    distance, distances = 1.0, []
    for power in range(1, old):
        distances.append(distance)
        distance += 1.0903078**power
    positions = [-distance for distance in reversed(distances)] + [0.0] + distances
    steps = np.arange(-(new - 1), new)
    expected = [interp1d(positions, column, kind="cubic", fill_value="extrapolate")(steps) for column in table.T]
    resized = beit_weights(2 * old - 1, 2 * new - 1) @ table
    np.testing.assert_allclose(resized, np.stack(expected, axis=1), atol=1e-10)
    np.testing.assert_allclose(resized[new - 2 : new + 1], table[old - 2 : old + 1], atol=1e-10)  # distances -1, 0, 1


def test_relative_positions_of_another_size_equal_positions_with_resized_tables() -> None:
    block = randomised(build_vision("vit_pico_patch8_64", num_classes=0)).blocks[0]
    tokens = torch.randn(1, 36, 64, generator=torch.Generator().manual_seed(0))
    trained = randomised(RelativePositions(block, 4, "beit"))
    whole = RelativePositions(block, 6)
    weights = torch.from_numpy(beit_weights(7, 11)).float()
    with torch.no_grad():
        whole.rows.copy_(weights @ trained.rows)
        whole.columns.copy_(weights @ trained.columns)
        assert relative(trained(block, tokens, (6, 6)), whole(block, tokens, (6, 6))) < ROUNDING
        trained.resizing = "linear"
        assert relative(trained(block, tokens, (6, 6)), whole(block, tokens, (6, 6))) > 0.01
