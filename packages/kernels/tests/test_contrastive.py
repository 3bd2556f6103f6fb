"""InfoNCE, SigLIP, distillation: loops, open_clip's losses, closed-form facts, plain = chunked = per process."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm_kernels import info_nce, siglip_loss, similarity_distillation

SCALE, BIAS = 14.3, -3.0
LOSSES = pytest.mark.parametrize("loss", [info_nce, partial(siglip_loss, logit_bias=BIAS)], ids=["info_nce", "siglip"])


def features(
    num: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, num, width, generator=generator, dtype=dtype)
    image, text = F.normalize(both, dim=-1)
    return image, F.normalize(text + image, dim=-1)  # pairs agree more than strangers


def gradients(loss, *inputs: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    return value.detach(), *torch.autograd.grad(value, leaves)


def test_info_nce_equals_a_loop_over_pairs():
    image, text = features(6, 8)
    total = 0.0
    for i in range(6):
        to_text = [math.exp(SCALE * float(image[i] @ text[j])) for j in range(6)]
        to_image = [math.exp(SCALE * float(image[j] @ text[i])) for j in range(6)]
        total -= math.log(to_text[i] / sum(to_text)) / 12 + math.log(to_image[i] / sum(to_image)) / 12
    assert info_nce(image, text, SCALE).item() == pytest.approx(total, abs=1e-5)


def test_siglip_equals_a_loop_over_pairs():
    image, text = features(6, 8)
    total = 0.0
    for i in range(6):
        for j in range(6):
            logit = SCALE * float(image[i] @ text[j]) + BIAS
            total += math.log1p(math.exp(-logit if i == j else logit)) / 6
    assert siglip_loss(image, text, SCALE, BIAS).item() == pytest.approx(total, abs=1e-5)


def test_losses_and_gradients_equal_open_clips():
    loss = pytest.importorskip("open_clip.loss")
    inputs = (*features(33, 16), torch.tensor(SCALE))
    assert_equal(gradients(info_nce, *inputs), gradients(loss.ClipLoss(), *inputs), 1e-7)
    inputs = (*inputs, torch.tensor(BIAS))
    assert_equal(gradients(siglip_loss, *inputs), gradients(loss.SigLipLoss(), *inputs), 1e-6)


def distillation(image, text, scale, chunk_size=None) -> torch.Tensor:
    """From a teacher of another width and temperature."""
    return similarity_distillation((image, text), features(len(image), 5, seed=7), scale, 6.0, chunk_size=chunk_size)


def test_distillation_and_its_gradients_are_open_clips_and_the_teacher_gets_none():
    loss = pytest.importorskip("open_clip.loss")
    teacher = [part.requires_grad_() for part in features(33, 5, seed=7)]

    def theirs(image, text, scale):
        return loss.DistillClipLoss()(image, text, scale, *teacher, torch.tensor(6.0))[1]

    inputs = (*features(33, 16), torch.tensor(SCALE))
    assert_equal(gradients(distillation, *inputs), gradients(theirs, *inputs), 1e-6)
    similarity_distillation((inputs[0].requires_grad_(), inputs[1]), teacher, SCALE, 6.0).backward()
    assert [part.grad for part in teacher] == [None, None]


@given(num=st.integers(1, 20), chunk_size=st.integers(1, 24), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_chunks_change_nothing_of_the_distillation(num, chunk_size, seed):
    inputs = (*features(num, 8, seed), torch.tensor(SCALE))
    assert_equal(gradients(distillation, *inputs, chunk_size=chunk_size), gradients(distillation, *inputs), 2e-6)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_mean_over_processes_is_the_distillation_of_the_big_batch(chunk_size):
    student, teacher = features(12, 8), features(12, 5, seed=7)
    parts = [
        similarity_distillation(
            tuple(part[rows] for part in student), tuple(part[rows] for part in teacher), SCALE, 6.0,
            all_student=student, all_teacher=teacher, chunk_size=chunk_size,
        )
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]  # fmt: skip
    whole = similarity_distillation(student, teacher, SCALE, 6.0)
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-6, rtol=0)


def assert_equal(actual, expected, tolerance: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_features_that_say_nothing_cost_ln_n():
    image, text = features(64, 8)
    assert info_nce(image, text, 0.0).item() == pytest.approx(math.log(64), abs=1e-6)
    strangers = F.normalize(torch.randn(2, 512, 4096, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert info_nce(strangers[0], strangers[1], 1 / 0.07).item() == pytest.approx(math.log(512), abs=0.05)


def test_separated_pairs_cost_nothing():
    eye = torch.eye(16)
    assert info_nce(eye, eye, 100.0).item() < 1e-6
    assert siglip_loss(eye, eye, 100.0, -50.0).item() < 1e-6


def test_siglip_starts_near_its_published_value():
    """With bias -10 and scale 10 the first loss is that of the positives alone, about 10, not of the N negatives."""
    strangers = F.normalize(torch.randn(2, 256, 4096, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert siglip_loss(strangers[0], strangers[1], 10.0, -10.0).item() == pytest.approx(10, abs=0.2)


@LOSSES
@given(num=st.integers(1, 20), chunk_size=st.integers(1, 24), scale=st.floats(0, 100), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_chunks_change_neither_loss_nor_gradients(loss, num, chunk_size, scale, seed):
    inputs = (*features(num, 8, seed), torch.tensor(scale))
    assert_equal(
        gradients(loss, *inputs, chunk_size=chunk_size), gradients(loss, *inputs), 1e-5 if scale > 50 else 2e-6
    )


@LOSSES
def test_chunked_equals_plain_to_1e_12_in_double_precision(loss):
    inputs = (*features(37, 16, dtype=torch.float64), torch.tensor(100.0, dtype=torch.float64))
    assert_equal(gradients(loss, *inputs, chunk_size=5), gradients(loss, *inputs), 1e-12)


def test_the_chunked_gradient_of_the_bias_is_the_plain_one():
    inputs = (*features(12, 8), torch.tensor(SCALE), torch.tensor(BIAS))
    assert_equal(gradients(siglip_loss, *inputs, chunk_size=5), gradients(siglip_loss, *inputs), 2e-6)


@LOSSES
def test_chunks_pass_gradcheck(loss):
    inputs = [tensor.requires_grad_() for tensor in features(5, 4, dtype=torch.float64)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, s: 2 * loss(i, t, s, chunk_size=2), (*inputs, scale))


@pytest.mark.parametrize("loss", [info_nce, partial(siglip_loss, logit_bias=BIAS), distillation])
def test_chunks_bound_what_is_kept_for_the_backward(loss):
    """No saved tensor is as large as the logits: n x N is 16 times n x D here."""
    image, text = (tensor.requires_grad_() for tensor in features(128, 8))
    largest = {}
    for chunk_size in (None, 16):
        sizes = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss(image, text, torch.tensor(SCALE), chunk_size=chunk_size)
        largest[chunk_size] = max(sizes)
    assert largest == {None: 128 * 128, 16: 128 * 8}


@LOSSES
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_mean_over_processes_is_the_loss_of_the_big_batch(loss, chunk_size):
    image, text = features(12, 8)
    parts = [
        loss(i, t, SCALE, rank=rank, chunk_size=chunk_size, all_text_features=text, **gathered(loss, image))
        for rank, (i, t) in enumerate(zip(image.split(4), text.split(4), strict=True))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(image, text, SCALE), atol=1e-6, rtol=0)


def gathered(loss, image: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"all_image_features": image} if loss is info_nce else {}


@LOSSES
def test_autocast_does_not_round_logits(loss):
    image, text = features(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, chunked = (loss(image, text, 100.0, chunk_size=chunk_size) for chunk_size in (None, 4))
    for value in (plain, chunked):
        torch.testing.assert_close(value, loss(image, text, 100.0), atol=1e-5, rtol=1e-6)


def test_large_scales_do_not_overflow():
    image = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    for chunk_size in (None, 3):
        loss, *grads = gradients(info_nce, image, -image, torch.tensor(1000.0), chunk_size=chunk_size)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_inputs_that_do_not_fit_are_refused():
    image, text = features(4, 8)
    with pytest.raises(ValueError, match="given together"):
        info_nce(image, text, SCALE, all_text_features=text)
    with pytest.raises(ValueError, match="both must be"):
        info_nce(image, text[:3], SCALE)
    with pytest.raises(ValueError, match="both must be"):
        info_nce(image[:0], text[:0], SCALE)
    with pytest.raises(ValueError, match="rank 1"):
        siglip_loss(image, text, SCALE, BIAS, rank=1)
    with pytest.raises(ValueError, match="given together"):
        similarity_distillation((image, text), (image, text), SCALE, SCALE, all_student=(image, text))
    with pytest.raises(ValueError, match="the teacher has 3 of 3 samples"):
        similarity_distillation((image, text), (image[:3], text[:3]), SCALE, SCALE)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        siglip_loss(image, text, SCALE, BIAS, chunk_size=0)
