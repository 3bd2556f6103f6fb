"""Residual sum and norm: the kernel against the plain form."""

import pytest
import torch

from vfm_kernels import add_layer_norm
from vfm_kernels.layers.add_layer_norm import add_layer_norm_plain

OP = torch.ops.vfm_kernels.add_layer_norm.default


def inputs(shape, dtype=torch.float32, stream=None):
    residual, branch = torch.randn(shape).to(stream or dtype), torch.randn(shape).to(dtype)
    parameters = [1 + 0.3 * torch.randn(shape[-1]), 0.1 * torch.randn(shape[-1]), torch.randn(shape[-1])]
    return [residual, branch, *parameters]


def with_drop(drop_scale):
    """Return op and plain form as functions of the differentiable inputs."""

    def op(residual, branch, weight, bias, layer_scale):
        return add_layer_norm(residual, branch, weight, bias, layer_scale=layer_scale, drop_scale=drop_scale)

    def plain(residual, branch, weight, bias, layer_scale):
        return add_layer_norm_plain(residual, branch, weight, bias, 1e-6, layer_scale, drop_scale)

    return op, plain


def without_scale(function):
    return lambda residual, branch, weight, bias: function(residual, branch, weight, bias, None)


@pytest.mark.parametrize("stream", [torch.float32, None], ids=["fp32 stream", "same stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layer_scale_and_drop_path(agrees, guarded, dtype, stream):
    op, plain = with_drop(torch.tensor([0.0, 1.25, 1.25]))
    agrees(op, plain, [guarded(t) for t in inputs((3, 5, 40), dtype, stream)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_plain_sum(agrees, guarded, dtype):
    op, plain = (without_scale(function) for function in with_drop(None))
    agrees(op, plain, [guarded(t) for t in inputs((2, 7, 24), dtype)[:4]])


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (17, 3), (2, 130)])
def test_odd_sizes(agrees, guarded, rows, width):
    op, plain = with_drop(None)
    agrees(op, plain, [guarded(t) for t in inputs((rows, width))])


def test_rows_may_be_strided(agrees):
    op, plain = (without_scale(function) for function in with_drop(None))

    def sliced(function):
        return lambda residual, branch, weight, bias: function(residual[:, 1:], branch.mT, weight, bias)

    residual, (_, branch, weight, bias, _) = torch.randn(2, 6, 8), inputs((2, 5, 8))
    agrees(sliced(op), sliced(plain), [residual, branch.mT.contiguous(), weight, bias])


def test_the_branch_of_a_dropped_sample_is_not_read():
    residual, branch, weight, bias, _ = inputs((2, 4, 8))
    branch[0] = float("nan")
    leaves = [t.requires_grad_() for t in (residual, branch, weight, bias)]
    summed, normed = add_layer_norm(*leaves, drop_scale=torch.tensor([0.0, 2.0]))
    (summed.sum() + normed.square().sum()).backward()
    assert torch.equal(summed[0], residual[0])
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert not branch.grad[0].any()


def test_opcheck_passes_and_the_whole_graph_compiles():
    leaves = [t.requires_grad_() for t in inputs((6, 16))]
    for layer_scale, drop_scale in ((leaves[4], torch.tensor([0.0, 2.0])), (None, None)):
        torch.library.opcheck(OP, (*leaves[:4], layer_scale, drop_scale, 1e-6))

    def loss():
        summed, normed = add_layer_norm(*leaves[:4], layer_scale=leaves[4])
        return (summed * normed).sum()

    ours = torch.autograd.grad(loss(), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, compiled, strict=True))
