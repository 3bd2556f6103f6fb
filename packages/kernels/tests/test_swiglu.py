"""SwiGLU with its norm: the plain form against timm's module, and the op's closed-form gradient against autograd."""

import pytest
import torch

from vfm_kernels import swiglu_subln

OP = torch.ops.vfm_kernels.swiglu_subln.default


def test_without_padding_it_equals_timm_between_its_linear_layers():
    layers = pytest.importorskip("timm.layers")
    mlp = layers.SwiGLU(6, 10, norm_layer=layers.LayerNorm).double()
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    hidden = swiglu_subln(mlp.fc1_g(tokens), mlp.fc1_x(tokens), mlp.norm.weight, mlp.norm.bias, mlp.norm.eps)
    torch.testing.assert_close(mlp.fc2(hidden), mlp(tokens))


def test_padding_only_adds_zeros():
    gate, value, weight, bias = torch.randn(7, 16), torch.randn(7, 16), torch.randn(11), torch.randn(11)
    padded = swiglu_subln(gate, value, weight, bias)
    assert torch.equal(padded[:, :11], swiglu_subln(gate[:, :11], value[:, :11], weight, bias))
    assert not padded[:, 11:].any()


def test_the_closed_form_gradient_is_that_of_the_plain_form(agrees):
    leaves = [torch.randn(7, 16), torch.randn(7, 16), torch.randn(11), torch.randn(11)]
    agrees(lambda *x: OP(*x, 1e-6)[0], swiglu_subln, leaves)
    torch.library.opcheck(OP, (*(leaf.requires_grad_() for leaf in leaves), 1e-6))


def test_meta_tensors_have_shapes_forward_and_backward():
    leaves = [torch.randn(shape, device="meta", requires_grad=True) for shape in ((7, 16), (7, 16), (11,), (11,))]
    OP(*leaves, 1e-6)[0].sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [(7, 16), (7, 16), (11,), (11,)]


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="W <= P"):
        swiglu_subln(torch.randn(2, 8), torch.randn(2, 8), torch.randn(9), torch.randn(9))
