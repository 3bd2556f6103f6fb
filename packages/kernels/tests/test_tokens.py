"""Token operations against loops, and their gradients."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from vfm_kernels import (
    block_mask_exact,
    gather_tokens,
    mask_tokens,
    masked_index,
    patch_dropout_index,
    random_mask,
    scatter_tokens,
)

OPS = torch.ops.vfm_kernels


def test_masked_patches_become_the_mask_token_and_others_stay():
    tokens, token = torch.randn(3, 16, 5), torch.randn(1, 1, 5)
    mask = random_mask(range(3), (4, 4), 7)
    result = mask_tokens(tokens, token, mask)
    for b in range(3):
        for n in range(16):
            assert torch.equal(result[b, n], token[0, 0] if mask[b, n] else tokens[b, n])


def test_the_mask_tokens_gradient_is_the_sum_over_masked_patches():
    tokens, token = torch.randn(2, 16, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    mask, weight = random_mask(range(2), (4, 4), 6), torch.randn(2, 16, 5)
    (mask_tokens(tokens, token, mask) * weight).sum().backward()
    torch.testing.assert_close(token.grad, weight[mask].sum(dim=0))
    torch.testing.assert_close(tokens.grad, weight * ~mask.unsqueeze(-1))


def test_bf16_tokens_stay_bf16_with_an_fp32_mask_token():
    result = mask_tokens(torch.randn(1, 4, 3, dtype=torch.bfloat16), torch.randn(3), torch.ones(1, 4, dtype=torch.bool))
    assert result.dtype == torch.bfloat16


def test_a_mask_of_another_grid_raises():
    with pytest.raises(ValueError, match="bool_mask"):
        mask_tokens(torch.randn(2, 16, 5), torch.randn(5), torch.zeros(2, 15, dtype=torch.bool))


@given(batch=st.integers(1, 3), num_tokens=st.integers(1, 20), data=st.data())
@settings(max_examples=50)
def test_scatter_undoes_gather(batch, num_tokens, data):
    keep = data.draw(st.integers(1, num_tokens))
    index = patch_dropout_index(batch, num_tokens, keep, torch.Generator().manual_seed(keep))
    tokens, fill = torch.randn(batch, num_tokens, 3), torch.randn(3)
    kept = gather_tokens(tokens, index)
    for b in range(batch):
        assert torch.equal(kept[b], tokens[b, index[b]])
    back = scatter_tokens(kept, index, num_tokens, fill)
    is_kept = torch.zeros(batch, num_tokens, dtype=torch.bool).scatter(1, index, True)
    assert torch.equal(back, torch.where(is_kept.unsqueeze(-1), tokens, fill))
    assert torch.equal(scatter_tokens(kept, index, num_tokens), tokens * is_kept.unsqueeze(-1))


def test_gradients_pass_through_gather_and_scatter():
    tokens = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    fill = torch.randn(3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[4, 0, 2], [1, 5, 3]])
    assert torch.autograd.gradcheck(lambda t, f: scatter_tokens(gather_tokens(t, index), index, 6, f), (tokens, fill))


def test_patch_dropout_keeps_the_exact_number_in_order_and_every_prefix_token():
    index = patch_dropout_index(64, 257, 127, torch.Generator().manual_seed(0), num_prefix_tokens=1)
    assert index.shape == (64, 128)
    assert (index[:, 0] == 0).all()
    assert (index.diff(dim=1) > 0).all()
    assert index.max() <= 256


def test_patch_dropout_is_uniform_and_seeded():
    first = patch_dropout_index(4000, 16, 4, torch.Generator().manual_seed(1))
    share = torch.bincount(first.flatten(), minlength=16) / 4000
    assert (share - 0.25).abs().max() < 0.035
    assert torch.equal(first, patch_dropout_index(4000, 16, 4, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, patch_dropout_index(4000, 16, 4, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("keep", [0, 257])
def test_an_impossible_number_of_kept_patches_raises(keep):
    with pytest.raises(ValueError, match=f"keep must be between 1 and 256, got {keep}"):
        patch_dropout_index(1, 257, keep, num_prefix_tokens=1)


def test_masked_index_selects_as_boolean_indexing_does():
    mask = block_mask_exact(range(5), (8, 8), 26)
    tokens = torch.randn(5, 64, 7)
    selected = gather_tokens(tokens, masked_index(mask, 26))
    assert torch.equal(selected.flatten(0, 1), tokens[mask])


def test_cls_comes_first_and_positions_are_added_last():
    patches, token, cls_token, positions = torch.randn(2, 4, 3), torch.randn(3), torch.randn(1, 1, 3), torch.randn(5, 3)
    mask = torch.tensor([[True, False, False, True]] * 2)
    result = mask_tokens(patches, token, mask, cls_token=cls_token, pos_embed=positions)
    expected = torch.cat([cls_token.expand(2, 1, 3), mask_tokens(patches, token, mask)], dim=1) + positions
    torch.testing.assert_close(result, expected)
    with pytest.raises(ValueError, match="pos_embed"):
        mask_tokens(patches, token, mask, cls_token=cls_token, pos_embed=positions[1:])


@pytest.mark.parametrize("with_cls", [True, False])
def test_the_closed_form_gradient_of_masking_is_that_of_the_plain_form(agrees, with_cls):
    mask = torch.rand(2, 6) < 0.5
    leaves = [torch.randn(2, 6, 4), torch.randn(4), torch.randn(6 + with_cls, 4)] + [torch.randn(4)] * with_cls
    agrees(
        lambda x, token, positions, cls_token=None: OPS.mask_tokens(x, token, mask, cls_token, positions),
        lambda x, token, positions, cls_token=None: mask_tokens(
            x, token, mask, cls_token=cls_token, pos_embed=positions
        ),
        leaves,
    )


def test_the_closed_form_gradients_of_gather_and_scatter_are_those_of_the_plain_forms(agrees):
    index = torch.tensor([[3, 0, 1], [1, 2, 4]])
    agrees(lambda x: OPS.gather_tokens(x, index), lambda x: gather_tokens(x, index), [torch.randn(2, 5, 7)])
    agrees(
        lambda x, fill: OPS.scatter_tokens(x, index, 5, fill.expand(2, 5, 7)),
        lambda x, fill: scatter_tokens(x, index, 5, fill),
        [torch.randn(2, 3, 7), torch.randn(7)],
    )


def test_meta_tensors_have_shapes_forward_and_backward():
    tokens, token = (torch.randn(shape, device="meta", requires_grad=True) for shape in ((2, 6, 4), (4,)))
    mask, index = torch.empty(2, 6, dtype=torch.bool, device="meta"), torch.empty(2, 3, dtype=torch.long, device="meta")
    kept = OPS.gather_tokens(OPS.mask_tokens(tokens, token, mask, token, None), index)
    OPS.scatter_tokens(kept, index, 9, None).sum().backward()
    assert kept.shape == (2, 3, 4)
    assert tokens.grad.shape == tokens.shape
    assert token.grad.shape == token.shape
