"""SwiGLU with its norm: the kernel against the plain form, padded and not."""

import pytest
import torch

from vfm_kernels import swiglu_subln
from vfm_kernels.layers.swiglu import swiglu_subln_plain

OP = torch.ops.vfm_kernels.swiglu_subln.default
BACKWARD = torch.ops.vfm_kernels.swiglu_subln_backward.default


def inputs(shape, width, dtype=torch.float32):
    gate, value = torch.randn(*shape).to(dtype), torch.randn(*shape).to(dtype)
    return gate, value, 1 + 0.3 * torch.randn(width), 0.1 * torch.randn(width)


def plain(gate, value, weight, bias):
    return swiglu_subln_plain(gate, value, weight, bias, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_true_width_of_a_padded_buffer_is_normalised(agrees, guarded, dtype):
    gate, value, weight, bias = inputs((2, 9, 48), 42, dtype)
    gate[..., 42:], value[..., 42:] = float("nan"), float("nan")  # padding is ignored
    agrees(swiglu_subln, plain, [guarded(t) for t in (gate, value, weight, bias)])


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 17), (63, 64), (66, 130)])
def test_odd_sizes_without_padding(agrees, guarded, rows, width):
    if width == 1:  # the norm of one channel is its bias; every gradient is rounding
        gate, value, weight, bias = inputs((rows, width), width)
        assert torch.equal(swiglu_subln(gate, value, weight, bias), bias.expand(rows, 1))
    else:
        agrees(swiglu_subln, plain, [guarded(t) for t in inputs((rows, width), width)])


def test_gate_and_value_may_be_halves_of_one_buffer(agrees):
    packed, (_, _, weight, bias) = torch.randn(5, 64), inputs((5, 32), 32)

    def halves(function):
        return lambda packed, weight, bias: function(*packed.chunk(2, dim=-1), weight, bias)

    agrees(halves(swiglu_subln), halves(plain), [packed, weight, bias])


def test_no_rows():
    gate, value, weight, bias = (t.requires_grad_() for t in inputs((0, 8), 8))
    swiglu_subln(gate, value, weight, bias).sum().backward()
    assert gate.grad.shape == (0, 8)
    assert not weight.grad.any()


def test_opcheck_passes_and_the_whole_graph_compiles():
    leaves = [t.requires_grad_() for t in inputs((5, 16), 12)]
    torch.library.opcheck(OP, (*leaves, 1e-6))

    def loss():
        return (swiglu_subln(*leaves) ** 2).sum()

    ours = torch.autograd.grad(loss(), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, compiled, strict=True))
