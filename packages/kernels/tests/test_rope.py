"""Rotary positions: the plain form against timm's, and its gradient."""

import pytest
import torch

from vfm_kernels.multihead.rope import rotate

OP = torch.ops.vfm_kernels.rotate.default


def test_rotation_equals_that_of_timms_eva():
    layers = pytest.importorskip("timm.layers")
    embedding = layers.RotaryEmbeddingCat(16, in_pixels=False, feat_shape=(4, 4), ref_feat_shape=(4, 4)).get_embed()
    sin, cos = (half[None, :, ::2] for half in embedding.chunk(2, dim=-1))  # timm repeats each angle for both of a pair
    queries = torch.randn(2, 2, 17, 16, dtype=torch.float64)
    expected = torch.cat([queries[:, :, :1], layers.apply_rot_embed_cat(queries[:, :, 1:], embedding)], dim=2)
    rotated = rotate(queries.transpose(1, 2), sin.expand(2, -1, -1), cos.expand(2, -1, -1), 1, None)
    torch.testing.assert_close(rotated.transpose(1, 2), expected)


def test_positions_are_rows_of_the_table_and_negative_ones_rotate_nothing():
    heads, angles = torch.randn(1, 3, 1, 4), torch.rand(1, 9, 2)
    rotated = rotate(heads, angles.sin(), angles.cos(), 0, torch.tensor([[7, -1, 2]]))
    for token, row in ((0, 7), (2, 2)):
        pairs = torch.view_as_complex(heads[0, token, 0].view(2, 2)) * torch.exp(1j * angles[0, row])
        torch.testing.assert_close(rotated[0, token, 0], torch.view_as_real(pairs).flatten())
    assert torch.equal(rotated[0, 1], heads[0, 1])


def test_rotation_keeps_lengths_and_its_gradient_is_the_inverse():
    heads, angles = torch.randn(1, 5, 3, 8, dtype=torch.float64, requires_grad=True), torch.rand(1, 5, 4) * 6
    tables = (angles.sin().double(), angles.cos().double())
    for function in (rotate, lambda *arguments: OP(*arguments, False)):
        rotated = function(heads, *tables, 0, None)
        torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1), rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(rotated, heads, rotated.detach())
        torch.testing.assert_close(gradient, heads.detach(), rtol=1e-6, atol=1e-6)


def test_the_ops_gradient_is_that_of_the_plain_form(agrees):
    angles, positions = torch.rand(2, 6, 4) * 6, torch.randint(-1, 6, (2, 5))
    tables = (angles.sin(), angles.cos())
    agrees(
        lambda x: OP(x, *tables, 0, positions, False),
        lambda x: rotate(x, *(table.to(x.dtype) for table in tables), num_prefix_tokens=0, positions=positions),
        [torch.randn(2, 5, 3, 8)],
    )


def test_meta_tensors_have_shapes_forward_and_backward():
    heads, table = torch.randn(2, 5, 3, 8, device="meta", requires_grad=True), torch.empty(2, 4, 4, device="meta")
    OP(heads, table, table, 1, None, False).sum().backward()
    assert heads.grad.shape == heads.shape
