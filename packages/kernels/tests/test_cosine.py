"""EVA's loss against loops and the released expression."""

import pytest
import torch

from vfm_kernels import block_mask, masked_cosine_loss, resultant_length, token_cosine


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    features = torch.randn(2, 4, 64, 12, dtype=torch.float64)
    return features[0], features[1], block_mask(range(4), (8, 8), 26)


def test_the_loss_equals_a_loop_over_masked_tokens(batch):
    prediction, target, mask = batch
    cosines = [
        float(prediction[b, n] @ target[b, n] / (prediction[b, n].norm() * target[b, n].norm()))
        for b in range(4)
        for n in range(64)
        if mask[b, n]
    ]
    assert masked_cosine_loss(prediction, target, mask).item() == pytest.approx(-sum(cosines) / len(cosines), abs=1e-12)


def test_loss_and_gradient_equal_evas_own_expression_on_selected_tokens(batch):
    prediction, target, mask = batch
    ours, theirs = (prediction.clone().requires_grad_() for _ in range(2))
    loss = masked_cosine_loss(ours, target, mask)
    reference = -torch.nn.CosineSimilarity(dim=-1)(theirs[mask], target[mask]).mean()
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(masked_cosine_loss(prediction[mask], target[mask]), loss.detach(), atol=1e-12, rtol=0)


def test_the_gradient_is_exact_and_stays_out_of_unmasked_tokens(batch):
    prediction, target, mask = (tensor[:1, :8] for tensor in batch)
    mask = mask.clone()
    mask[0, :3] = True
    mask[0, 3:5] = False
    prediction = prediction.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: masked_cosine_loss(p, target, mask), (prediction,))
    masked_cosine_loss(prediction, target, mask).backward()
    assert not prediction.grad[~mask].any()
    assert prediction.grad[mask].any(dim=-1).all()


def test_the_loss_ignores_scale_and_is_minus_one_when_perfect(batch):
    _, target, mask = batch
    assert masked_cosine_loss(7 * target, target, mask).item() == pytest.approx(-1, abs=1e-6)
    assert masked_cosine_loss(-target, target, mask).item() == pytest.approx(1, abs=1e-6)


def test_a_batch_without_masked_tokens_has_zero_loss_and_gradient(batch):
    prediction, target, mask = batch
    prediction.requires_grad_()
    loss = masked_cosine_loss(prediction, target, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_half_precision_features_are_compared_in_fp32_under_autocast(batch):
    prediction, target, _ = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine = token_cosine(prediction.bfloat16(), target.bfloat16())
    assert cosine.dtype == torch.float32
    exact = token_cosine(prediction.bfloat16().double(), target.bfloat16().double())
    torch.testing.assert_close(cosine.double(), exact, atol=1e-6, rtol=0)


def test_shapes_that_do_not_fit_raise(batch):
    prediction, target, mask = batch
    with pytest.raises(ValueError, match="target"):
        masked_cosine_loss(prediction, target[:, :-1], mask)
    with pytest.raises(ValueError, match="bool_mask"):
        masked_cosine_loss(prediction, target, mask[:, :-1])


def test_resultant_length_is_the_cosine_of_the_best_constant_prediction(batch):
    _, target, mask = batch
    target = target + 2 * torch.randn(12, dtype=torch.float64)
    length = resultant_length(target, mask)
    best = torch.nn.functional.normalize(target[mask], dim=-1).mean(dim=0)
    torch.testing.assert_close(-masked_cosine_loss(best.expand_as(target[mask]), target[mask]), length)
    for guess in torch.randn(50, 12, dtype=torch.float64):
        assert -masked_cosine_loss(guess.expand_as(target[mask]), target[mask]) <= length
    unit = torch.nn.functional.normalize(target[mask], dim=-1)
    torch.testing.assert_close((unit @ unit.T).mean(), length**2)
    torch.testing.assert_close(resultant_length(target[mask]), length)


def test_identical_directions_have_resultant_length_one(batch):
    prediction, _, mask = batch
    assert resultant_length(prediction[:1, :1].expand(4, 64, -1) * torch.rand(4, 64, 1), mask).item() == pytest.approx(
        1
    )
    assert resultant_length(prediction, mask).item() < 0.3
    assert resultant_length(prediction, torch.zeros_like(mask)).item() == 0


@pytest.mark.parametrize("with_mask", [True, False])
def test_the_closed_form_gradient_is_that_of_the_plain_form(agrees, batch, with_mask):
    prediction, target, mask = (tensor.flatten(0, 1) for tensor in batch)
    prediction, target = prediction.float(), target.float()
    mask = mask if with_mask else None
    op = torch.ops.vfm_kernels.masked_cosine_loss.default
    agrees(
        lambda p: op(p, target.to(p.dtype), mask)[0],
        lambda p: masked_cosine_loss(p, target.to(p.dtype), mask),
        [prediction],
    )
    torch.library.opcheck(op, (prediction.requires_grad_(), target, mask))


def test_meta_tensors_have_shapes_forward_and_backward():
    prediction, target = (torch.randn(6, 4, device="meta") for _ in range(2))
    torch.ops.vfm_kernels.masked_cosine_loss(prediction.requires_grad_(), target, None)[0].backward()
    assert prediction.grad.shape == (6, 4)
