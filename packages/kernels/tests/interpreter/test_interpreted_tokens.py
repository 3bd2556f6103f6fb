"""Token operations: the kernels against the plain forms."""

import pytest
import torch

from vfm_kernels import gather_tokens, mask_tokens, patch_dropout_index, scatter_tokens, use_kernels

OPS = torch.ops.vfm_kernels
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def reference(function):
    """Return the plain form of a public function."""

    def plain(*inputs):
        with use_kernels("reference"):
            return function(*inputs)

    return plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_patches", [1, 17])
def test_mask_token_cls_and_positions(agrees, guarded, dtype, num_patches):
    bool_mask = torch.rand(3, num_patches) < 0.4

    def function(patches, token, cls_token, pos_embed):
        return mask_tokens(patches, token, bool_mask, cls_token=cls_token, pos_embed=pos_embed)

    inputs = [torch.randn(3, num_patches, 24).to(dtype), torch.randn(24), torch.randn(24)]
    inputs.append(torch.randn(num_patches + 1, 24))
    agrees(function, reference(function), [guarded(t) for t in inputs])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["none masked", "half masked", "all masked"])
def test_the_mask_token_alone_and_strided_patches(agrees, share):
    bool_mask = torch.rand(2, 6) < share

    def function(tokens, token):
        return mask_tokens(tokens[:, 1:], token, bool_mask)

    agrees(function, reference(function), [torch.randn(2, 7, 10), torch.randn(1, 1, 10)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathering(agrees, guarded, dtype):
    index = patch_dropout_index(2, 17, 5, num_prefix_tokens=1)
    agrees(
        lambda x: gather_tokens(x, index),
        reference(lambda x: gather_tokens(x, index)),
        [guarded(torch.randn(2, 17, 12).to(dtype))],
    )


def test_gathering_a_token_more_than_once_sums_its_gradients(agrees):
    index = torch.tensor([[3, 0, 3, 3], [1, 1, 2, 4]])
    agrees(lambda x: gather_tokens(x, index), reference(lambda x: gather_tokens(x, index)), [torch.randn(2, 5, 7)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_kept", [1, 6, 11])
def test_scattering_with_a_mask_token_elsewhere(agrees, guarded, dtype, num_kept):
    index = patch_dropout_index(2, 11, num_kept)

    def function(tokens, fill):
        return scatter_tokens(tokens, index, 11, fill)

    agrees(function, reference(function), [guarded(torch.randn(2, num_kept, 12).to(dtype)), torch.randn(1, 1, 12)])


def test_opcheck_passes_and_the_whole_graph_compiles():
    tokens, token = torch.randn(2, 6, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    positions, bool_mask, index = (
        torch.randn(7, 8, requires_grad=True),
        torch.rand(2, 6) < 0.5,
        torch.tensor([[1, 4]] * 2),
    )
    torch.library.opcheck(OPS.mask_tokens.default, (tokens, token, bool_mask, token, positions))
    torch.library.opcheck(OPS.gather_tokens.default, (tokens, index))
    fill = token.expand(2, 9, 8)
    torch.library.opcheck(
        OPS.scatter_tokens.default, (torch.randn(2, 2, 8, requires_grad=True), index, 9, fill.detach())
    )

    def loss():
        kept = gather_tokens(mask_tokens(tokens, token, bool_mask, pos_embed=positions[1:]), index)
        return (scatter_tokens(kept, index, 6, token) ** 2).sum()

    ours = torch.autograd.grad(loss(), (tokens, token, positions))
    compiled = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(), (tokens, token, positions)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, compiled, strict=True))
