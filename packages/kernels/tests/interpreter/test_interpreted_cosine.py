"""EVA's loss: the kernel against the plain form."""

import pytest
import torch

from vfm_kernels import masked_cosine_loss, use_kernels

OP = torch.ops.vfm_kernels.masked_cosine_loss.default


def functions(target, bool_mask):
    """Return op and plain form as functions of the prediction."""

    def plain(prediction):
        with use_kernels("reference"):
            return masked_cosine_loss(prediction, target.to(prediction.dtype), bool_mask)

    return lambda prediction: masked_cosine_loss(prediction, target, bool_mask), plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_loss_and_gradient(agrees, guarded, dtype):
    target = guarded(torch.randn(2, 17, 40).to(dtype))
    agrees(*functions(target, torch.rand(2, 17) < 0.4), [guarded(torch.randn(2, 17, 40).to(dtype))])


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (5, 66), (63, 17)])
def test_odd_sizes_without_a_mask(agrees, guarded, rows, width):
    agrees(*functions(guarded(torch.randn(rows, width)), None), [guarded(torch.randn(rows, width))])


def test_a_full_mask_equals_no_mask_and_an_empty_one_has_no_loss():
    prediction, target = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)
    full = masked_cosine_loss(prediction, target, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(full, masked_cosine_loss(prediction, target))
    empty = masked_cosine_loss(prediction, target, torch.zeros(2, 3, dtype=torch.bool))
    empty.backward()
    assert empty == 0
    assert not prediction.grad.any()


def test_what_is_not_masked_is_not_read():
    prediction, target = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    bool_mask = torch.tensor([[True, False, True, False]])
    expected = masked_cosine_loss(prediction, target, bool_mask)
    prediction[0, 1], target[0, 3] = float("nan"), float("nan")
    prediction.requires_grad_()
    loss = masked_cosine_loss(prediction, target, bool_mask)
    loss.backward()
    assert torch.equal(loss.detach(), expected)
    assert prediction.grad.isfinite().all()


def test_features_of_length_zero(agrees):
    prediction, target = torch.randn(3, 8), torch.randn(3, 8)
    prediction[0], target[1] = 0, 0
    agrees(*functions(target, None), [prediction])


def test_fp16_gradients_survive_a_scaled_loss():
    prediction, target = torch.randn(4000, 8).half().requires_grad_(), torch.randn(4000, 8).half()
    prediction.data[8:] *= 100  # d loss / d prediction is about 1e-8 there, which fp16 does not hold unscaled
    op, plain = functions(target[:32], None)
    exact = torch.autograd.grad(65536 / 125 * plain(prediction[:32].double()), prediction)[0]
    ours = torch.autograd.grad(65536 / 125 * op(prediction[:32]), prediction)[0]
    torch.testing.assert_close(ours[:32], exact[:32], rtol=2e-3, atol=1e-6)


def test_opcheck_passes_and_the_whole_graph_compiles():
    prediction, target, bool_mask = torch.randn(6, 16, requires_grad=True), torch.randn(6, 16), torch.rand(6) < 0.5
    torch.library.opcheck(OP, (prediction, target, bool_mask))
    torch.library.opcheck(OP, (prediction, target, None))

    def loss():
        return masked_cosine_loss(prediction, target, bool_mask)

    ours = torch.autograd.grad(loss(), prediction)[0]
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), prediction)[0]
    assert torch.equal(ours, compiled)
