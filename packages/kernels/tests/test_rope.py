"""Rotary positions: the plain form against timm's, in place and through autograd."""

import pytest
import torch

from vfm_kernels import rope_2d


def test_it_is_the_rotation_of_timms_eva():
    layers = pytest.importorskip("timm.layers")
    embedding = layers.RotaryEmbeddingCat(16, in_pixels=False, feat_shape=(4, 4), ref_feat_shape=(4, 4)).get_embed()
    sin, cos = (half[:, ::2] for half in embedding.chunk(2, dim=-1))  # timm repeats each angle for both of a pair
    qkv = torch.randn(2, 17, 3, 2, 16, dtype=torch.float64)
    queries = qkv[:, :, 0].transpose(1, 2)
    expected = torch.cat([queries[:, :, :1], layers.apply_rot_embed_cat(queries[:, :, 1:], embedding)], dim=2)
    rope_2d(qkv.view(2, 17, 6, 16), sin, cos, num_rotated=4, num_prefix_tokens=1)
    torch.testing.assert_close(qkv[:, :, 0].transpose(1, 2), expected)


def test_positions_name_rows_of_the_table_and_negative_ones_none():
    heads, angles = torch.randn(1, 3, 1, 4), torch.rand(9, 2)
    rotated = rope_2d(heads.clone(), angles.sin(), angles.cos(), positions=torch.tensor([[7, -1, 2]]))
    for token, row in ((0, 7), (2, 2)):
        pairs = torch.view_as_complex(heads[0, token, 0].view(2, 2)) * torch.exp(1j * angles[row])
        torch.testing.assert_close(rotated[0, token, 0], torch.view_as_real(pairs).flatten())
    assert torch.equal(rotated[0, 1], heads[0, 1])


def test_rotation_changes_no_length_and_its_gradient_is_the_inverse():
    heads, angles = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True), torch.rand(5, 4) * 6
    rotated = rope_2d(heads * 1, angles.sin().double(), angles.cos().double())
    torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1), rtol=1e-6, atol=0)
    rotated.backward(rotated.detach())
    torch.testing.assert_close(heads.grad, heads.detach(), rtol=1e-6, atol=1e-6)


def test_tables_that_do_not_fit_are_refused():
    heads, angles = torch.randn(1, 4, 1, 8), torch.rand(4, 4)
    with pytest.raises(ValueError, match="heads of 8 need"):
        rope_2d(heads, angles[:, :3], angles[:, :3])
    with pytest.raises(ValueError, match="3 tokens have positions, the table 4 rows"):
        rope_2d(heads, angles, angles, num_prefix_tokens=1)
    with pytest.raises(ValueError, match="positions are"):
        rope_2d(heads, angles, angles, positions=torch.zeros(1, 3, dtype=torch.long))
