"""InfoNCE, SigLIP and distillation against loops, open_clip's losses and closed forms; plain = chunked = per process.

Identities are tested in float64, the accuracy of chunks in fp32 by the error rule.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from vfm_kernels import info_nce, siglip_loss, similarity_distillation
from vfm_kernels.losses import chunked

SCALE, BIAS = 14.3, -3.0
LOSSES = pytest.mark.parametrize("loss", [info_nce, partial(siglip_loss, logit_bias=BIAS)], ids=["info_nce", "siglip"])


def features(
    num: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, num, width, generator=generator, dtype=dtype)
    image, text = F.normalize(both, dim=-1)
    return image, F.normalize(text + image, dim=-1)  # matching pairs are more similar than others


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


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


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round to the 11 significant bits that a TF32 product takes of its factors; their products are exact in fp32."""
    bits = tensor.detach().float().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return tensor + (rounded - tensor).detach()


@pytest.mark.parametrize("chunk_size", [None, 20])
@LOSSES
def test_factors_in_tf32_with_fp32_sums_keep_loss_and_gradients(loss, chunk_size):
    """A GPU rounds the factors in the product; here they are rounded before. The logits stay fp32."""
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 64, 512, generator=generator), dim=-1)  # pairs that are not yet told apart
    exact = gradients(loss, image.double(), text.double(), logit_scale=100.0)
    ours = gradients(lambda a, b, **options: loss(tf32(a), tf32(b), **options), image, text, logit_scale=100.0,
                     chunk_size=chunk_size)  # fmt: skip
    logits, rounded = 100 * image.double() @ text.double().T, 100 * tf32(image).double() @ tf32(text).double().T
    assert (logits - rounded).abs().max() < 0.01  # 0.0044
    for value, expected in zip(ours, exact, strict=True):
        assert ((value.double() - expected).norm() / expected.norm()).item() < 1e-3  # as fp16 is allowed


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_samples_of_one_group_are_left_out_of_each_others_softmax(chunk_size):
    image, text = features(6, 8)
    groups = torch.tensor([3, 5, 3, 7, 3, 5])
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j == i or groups[j] != groups[i]]
        for mine, theirs in ((image, text), (text, image)):
            weights = {j: math.exp(SCALE * float(mine[i] @ theirs[j])) for j in others}
            total -= math.log(weights[i] / sum(weights.values())) / 12
    assert info_nce(image, text, SCALE, all_groups=groups, chunk_size=chunk_size).item() == pytest.approx(total)
    whole = gradients(partial(info_nce, all_groups=groups), image, text, scalar(SCALE))
    assert_equal(gradients(partial(info_nce, all_groups=groups, chunk_size=4), image, text, scalar(SCALE)), whole)
    with pytest.raises(ValueError, match=r"expected all_groups of shape \(6,\), got \(5,\)"):
        info_nce(image, text, SCALE, all_groups=groups[:5])


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
    inputs = (*features(33, 16), scalar(SCALE))
    assert_equal(gradients(info_nce, *inputs), gradients(loss.ClipLoss(), *inputs))
    bias = scalar(BIAS)
    assert_equal(gradients(siglip_loss, *inputs, bias), gradients(loss.SigLipLoss(), *inputs, bias))


def distillation(image, text, scale, chunk_size=None) -> torch.Tensor:
    """Compute the distillation from a teacher of another width and temperature."""
    return similarity_distillation(
        (image, text), features(len(image), 5, 7, image.dtype), scale, 6.0, chunk_size=chunk_size
    )


def test_distillation_and_its_gradients_are_open_clips_and_the_teacher_gets_none():
    loss = pytest.importorskip("open_clip.loss")
    teacher = [part.requires_grad_() for part in features(33, 5, seed=7)]

    def theirs(image, text, scale):
        return loss.DistillClipLoss()(image, text, scale, *teacher, scalar(6.0))[1]

    inputs = (*features(33, 16), scalar(SCALE))
    assert_equal(gradients(distillation, *inputs), gradients(theirs, *inputs))
    similarity_distillation((inputs[0].requires_grad_(), inputs[1]), teacher, SCALE, 6.0).backward()
    assert [part.grad for part in teacher] == [None, None]


@given(num=st.integers(1, 20), chunk_size=st.integers(1, 24), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_chunks_do_not_change_the_distillation(num, chunk_size, seed):
    inputs = (*features(num, 8, seed), scalar(SCALE))
    assert_equal(gradients(distillation, *inputs, chunk_size=chunk_size), gradients(distillation, *inputs))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_mean_over_processes_is_the_distillation_of_the_whole_batch(chunk_size):
    student, teacher = features(12, 8), features(12, 5, seed=7)
    parts = [
        similarity_distillation(
            tuple(part[rows] for part in student), tuple(part[rows] for part in teacher), SCALE, 6.0,
            all_student=student, all_teacher=teacher, chunk_size=chunk_size,
        )
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]  # fmt: skip
    whole = similarity_distillation(student, teacher, SCALE, 6.0)
    assert_equal([torch.stack(parts).mean()], [whole])


def assert_equal(actual, expected) -> None:
    """Assert equality in float64 but for rounding at a scale of 100."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_uninformative_features_cost_ln_n():
    image, text = features(64, 8)
    assert info_nce(image, text, 0.0).item() == pytest.approx(math.log(64), abs=1e-6)
    strangers = F.normalize(torch.randn(2, 512, 4096, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert info_nce(strangers[0], strangers[1], 1 / 0.07).item() == pytest.approx(math.log(512), abs=0.05)


def test_loss_of_separated_pairs_is_zero():
    eye = torch.eye(16)
    assert info_nce(eye, eye, 100.0).item() < 1e-6
    assert siglip_loss(eye, eye, 100.0, -50.0).item() < 1e-6


def test_siglip_starts_near_its_published_value():
    """With bias -10 and scale 10 the initial loss comes from the positives, about 10, not from the N negatives."""
    strangers = F.normalize(torch.randn(2, 256, 4096, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert siglip_loss(strangers[0], strangers[1], 10.0, -10.0).item() == pytest.approx(10, abs=0.2)


@LOSSES
@given(num=st.integers(1, 20), chunk_size=st.integers(1, 24), scale=st.floats(0, 100), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_chunks_change_neither_loss_nor_gradients(loss, num, chunk_size, scale, seed):
    inputs = (*features(num, 8, seed), scalar(scale))
    assert_equal(gradients(loss, *inputs, chunk_size=chunk_size), gradients(loss, *inputs))


@LOSSES
@pytest.mark.parametrize("scale", [SCALE, 42.0, 100.0])
def test_chunks_are_as_exact_as_the_plain_form_in_fp32(loss, scale):
    """Errors are averaged over draws: the gradient of the scale is one number, and its error in one draw is chance."""
    errors = []
    for seed in range(12):
        inputs = (*features(37, 16, seed, torch.float32), torch.tensor(scale))
        exact = gradients(loss, *(tensor.double() for tensor in inputs))
        for chunk_size in (None, 5):
            found = gradients(loss, *inputs, chunk_size=chunk_size)
            errors.append([(f.double() - e).norm() for f, e in zip(found, exact, strict=True)])
    plain, chunked = torch.tensor(errors).view(12, 2, 4).square().mean(dim=0).sqrt()
    assert (chunked <= 3 * plain).all(), (chunked, plain)


def test_the_chunked_gradient_of_the_bias_is_the_plain_one():
    inputs = (*features(12, 8), scalar(SCALE), scalar(BIAS))
    assert_equal(gradients(siglip_loss, *inputs, chunk_size=5), gradients(siglip_loss, *inputs))


@LOSSES
def test_chunks_pass_gradcheck(loss):
    inputs = [tensor.requires_grad_() for tensor in features(5, 4)]
    scale = scalar(3.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, t, s: 2 * loss(i, t, s, chunk_size=2), (*inputs, scale))


@pytest.mark.parametrize("loss", [info_nce, partial(siglip_loss, logit_bias=BIAS), distillation])
def test_chunks_bound_what_is_kept_for_the_backward(loss):
    """No saved tensor is as large as the logits: n x N is 16 times n x D here."""
    image, text = (tensor.requires_grad_() for tensor in features(128, 8))
    largest = {}
    for chunk_size in (None, 16):
        sizes = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss(image, text, scalar(SCALE), chunk_size=chunk_size)
        largest[chunk_size] = max(sizes)
    assert largest == {None: 128 * 128, 16: 128 * 8}


@LOSSES
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_mean_over_processes_is_the_loss_of_the_whole_batch(loss, chunk_size):
    image, text = features(12, 8)
    parts = [
        loss(i, t, SCALE, rank=rank, chunk_size=chunk_size, all_text_features=text, **gathered(loss, image))
        for rank, (i, t) in enumerate(zip(image.split(4), text.split(4), strict=True))
    ]
    assert_equal([torch.stack(parts).mean()], [loss(image, text, SCALE)])


def gathered(loss, image: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"all_image_features": image} if loss is info_nce else {}


@LOSSES
def test_autocast_does_not_round_logits(loss):
    image, text = features(16, 8, dtype=torch.float32)
    for chunk_size in (None, 4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(image, text, 100.0, chunk_size=chunk_size)
        assert torch.equal(value, loss(image, text, 100.0, chunk_size=chunk_size))


def test_large_scales_do_not_overflow():
    image = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    for chunk_size in (None, 3):
        loss, *grads = gradients(info_nce, image, -image, torch.tensor(1000.0), chunk_size=chunk_size)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_inputs_that_do_not_fit_are_refused():
    image, text = features(4, 8)
    with pytest.raises(ValueError, match="must be given together"):
        info_nce(image, text, SCALE, all_text_features=text)
    with pytest.raises(ValueError, match="expected image and text features of one shape"):
        info_nce(image, text[:3], SCALE)
    with pytest.raises(ValueError, match="expected image and text features of one shape"):
        info_nce(image[:0], text[:0], SCALE)
    with pytest.raises(ValueError, match="rank 1"):
        siglip_loss(image, text, SCALE, BIAS, rank=1)
    with pytest.raises(ValueError, match="must be given together"):
        similarity_distillation((image, text), (image, text), SCALE, SCALE, all_student=(image, text))
    with pytest.raises(ValueError, match="got 4 of 4, 3 of 3"):
        similarity_distillation((image, text), (image[:3], text[:3]), SCALE, SCALE)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        siglip_loss(image, text, SCALE, BIAS, chunk_size=0)


@pytest.mark.parametrize("name", ["cross_entropy_rows", "sigmoid_rows"])
def test_rows_in_place_equal_their_plain_forms(name):
    logits = torch.randn(3, 7)
    loss, grad = getattr(chunked, name)(logits.clone(), 2)
    assert torch.equal(getattr(torch.ops.vfm_kernels, f"{name}_")(logits, 2), loss)
    assert torch.equal(logits, grad)
