"""Residual sum and norm: the plain form against a timm block, and the op's closed-form gradient against autograd."""

import pytest
import torch

from vfm_kernels import add_layer_norm

OP = torch.ops.vfm_kernels.add_layer_norm.default


def inputs(rows=6, width=5):
    return [torch.randn(rows, width), torch.randn(rows, width), *torch.randn(3, width)]


def test_it_equals_the_middle_of_a_timm_block():
    models = pytest.importorskip("timm.models.vision_transformer")
    block = models.Block(8, 2, init_values=0.3).double()
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    branch, norm = block.attn(block.norm1(tokens)), block.norm2
    summed, normed = add_layer_norm(
        tokens, branch, norm.weight, norm.bias, norm.eps, layer_scale=block.ls1.gamma, drop_scale=torch.ones(2)
    )
    torch.testing.assert_close(summed + block.ls2(block.mlp(normed)), block(tokens))


def test_a_dropped_sample_keeps_its_stream():
    residual, branch, weight, bias, _ = inputs()
    summed, _ = add_layer_norm(residual, branch, weight, bias, drop_scale=torch.tensor([0.0, 2, 1, 1, 1, 0]))
    assert torch.equal(summed[0], residual[0])
    assert torch.equal(summed[1], residual[1] + 2 * branch[1])


@pytest.mark.parametrize("scaled", [True, False])
def test_the_closed_form_gradient_is_that_of_the_plain_form(agrees, scaled):
    leaves = inputs() if scaled else inputs()[:4]
    drop_scale = torch.tensor([0.0, 2.0, 1.0]) if scaled else None

    def op(residual, branch, weight, bias, layer_scale=None):
        return OP(residual, branch, weight, bias, layer_scale, drop_scale, 1e-6)[:2]

    def plain(residual, branch, weight, bias, layer_scale=None):
        factor = None if drop_scale is None else drop_scale.repeat_interleave(2)
        return add_layer_norm(residual, branch, weight, bias, layer_scale=layer_scale, drop_scale=factor)

    agrees(op, plain, leaves)
    scale = leaves[4].requires_grad_() if scaled else None
    torch.library.opcheck(OP, (*(leaf.requires_grad_() for leaf in leaves[:4]), scale, drop_scale, 1e-6))


def test_meta_tensors_have_shapes_forward_and_backward():
    leaves = [t.to("meta").requires_grad_() for t in inputs()]
    summed, normed = OP(*leaves, None, 1e-6)[:2]
    (summed + normed).sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]


def test_shapes_that_do_not_fit_raise():
    residual, branch, weight, bias, _ = inputs()
    with pytest.raises(ValueError, match=r"parameters of shape \(5,\)"):
        add_layer_norm(residual, branch, weight[:3], bias)
    with pytest.raises(ValueError, match=r"expected drop_scale of shape \(6,\), got \(5,\)"):
        add_layer_norm(residual, branch, weight, bias, drop_scale=torch.ones(5))
