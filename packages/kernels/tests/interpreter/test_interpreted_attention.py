"""Attention: the kernels against the plain form."""

import math

import pytest
import torch
from torch import Tensor

from error_rule import evaluate
from vfm_kernels import attention, attention_packed
from vfm_kernels.multihead.attention_plain import attention_plain
from vfm_kernels.pattern import Pattern

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHORT, STREAM = "triton_short", "triton_stream"


def heads(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor, **kind) -> Tensor:
    for name in {"sin", "cos"} & kind.keys():
        kind[name] = kind[name].to(torch.promote_types(q.dtype, torch.float32))
    return attention_plain(q, k, v, Pattern.from_arguments(q, k, v, **kind))[0]


@pytest.fixture
def same(agrees):
    """Return a function that compares a kernel with the plain form in the output and three gradients."""

    def compare(inputs: list[Tensor], backend: str, **kind) -> None:
        agrees(lambda *x: attention(*x, backend=backend, **kind), lambda *x: plain(*x, **kind), inputs)

    return compare


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [SHORT, STREAM])
def test_dtypes(same, guarded, backend, dtype):
    same([guarded(each) for each in heads(2, 50, 1, 88, dtype=dtype)], backend)


@pytest.mark.parametrize("width", [72, 80, 104, 112, 128])
def test_widths(same, guarded, width):
    same([guarded(each) for each in heads(1, 33, 2, width)], SHORT if width <= 80 else STREAM)


@pytest.mark.parametrize("num_tokens", [2, 17, 63, 64, 65, 66, 129])
@pytest.mark.parametrize("backend", [SHORT, STREAM])
def test_odd_numbers_of_tokens(same, guarded, backend, num_tokens):
    same([guarded(each) for each in heads(1, num_tokens, 1, 64)], backend)


@pytest.mark.parametrize(("num_tokens", "backend"), [(257, SHORT), (197, STREAM)])
def test_tokens_of_an_image(same, guarded, num_tokens, backend):
    same([guarded(each) for each in heads(1, num_tokens, 1, 64)], backend)


REAL = [(tokens, width) for tokens in (197, 256, 577) for width in (64, 88, 128)]
REAL += [(257, width) for width in (64, 72, 80, 88, 104, 112, 128)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("num_tokens", "width"), REAL)
def test_real_shapes(same, guarded, num_tokens, width, dtype):
    inputs = [guarded(each) for each in heads(1, num_tokens, 1, width, dtype=dtype)]
    for backend in (STREAM, SHORT)[: 1 + (num_tokens <= 272 and width <= 88)]:
        same(inputs, backend)


@pytest.mark.parametrize("backend", [SHORT, STREAM])
def test_one_token_returns_its_value_whatever_its_score(guarded, backend):
    q, k, v = (guarded(each).requires_grad_() for each in heads(2, 1, 2, 64))
    out = attention(q, k, v, backend=backend)
    assert torch.equal(out, v)
    d_q, d_k, d_v = torch.autograd.grad(out, [q, k, v], v.detach())
    torch.testing.assert_close(d_v, v)
    assert max(d_q.abs().max(), d_k.abs().max()) < 1e-4  # the rounding of sums of 64 squares


@pytest.mark.parametrize("num_tokens", [77, 130])
def test_causal(same, guarded, num_tokens):
    same([guarded(each) for each in heads(1, num_tokens, 1, 64)], STREAM, causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_of_several_lengths_and_empty_ones(same, guarded, causal):
    ends = torch.tensor([0, 0, 1, 66, 66, 99, 99], dtype=torch.int32)
    inputs = [guarded(each) for each in heads(1, 99, 1, 72)]
    same(inputs, STREAM, cu_seqlens=ends, max_seqlen=65, causal=causal)


def test_no_tokens():
    inputs = [each.requires_grad_() for each in heads(2, 0, 1, 64)]
    out = attention(*inputs)
    out.sum().backward()
    assert out.shape == inputs[0].grad.shape == (2, 0, 1, 64)


@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize(("backend", "num_tokens"), [(SHORT, 19), (STREAM, 9)])
def test_rotary_positions(same, guarded, backend, num_tokens, width):
    angles = torch.rand(num_tokens - 1, width // 2) * 6
    tables = {"sin": angles.sin(), "cos": angles.cos()}
    same([guarded(each) for each in heads(1, num_tokens, 1, width)], backend, num_prefix_tokens=1, **tables)


def test_rotary_positions_of_each_token_and_of_each_sequence(same):
    angles, positions = torch.rand(20, 32) * 6, torch.randint(-1, 20, (1, 40))
    kind = {"sin": angles.sin(), "cos": angles.cos(), "positions": positions}
    same(heads(1, 40, 1, 64), SHORT, **kind)
    same(heads(1, 40, 1, 64), STREAM, cu_seqlens=torch.tensor([0, 25, 40], dtype=torch.int32), **kind)


def test_what_no_program_of_the_kernel_would_see_raises():
    """No program would write the last token of the longer sequence, and angles beyond the table would be read."""
    angles, ends = torch.rand(20, 32), torch.tensor([0, 25, 40], dtype=torch.int32)
    kind = {"sin": angles.sin(), "cos": angles.cos(), "positions": torch.full((1, 40), 19), "cu_seqlens": ends}
    with pytest.raises(ValueError, match="expected max_seqlen of at least 25, the longest sequence, got 24"):
        attention(*heads(1, 40, 1, 64), backend=STREAM, **kind, max_seqlen=24)
    with pytest.raises(ValueError, match="expected positions below 20, the number of rows of sin and cos, got 20"):
        attention(*heads(1, 40, 1, 64), backend=STREAM, **kind | {"positions": torch.full((1, 40), 20)})


@pytest.mark.parametrize("backend", [SHORT, STREAM])
def test_permuted_strides(agrees, backend):
    inputs = [each.transpose(1, 2) for each in heads(1, 2, 40, 24)]  # torch's layout of heads: (B, H, N, D)
    inputs[0] = inputs[0].transpose(1, 3).contiguous().transpose(1, 3)  # channels that are not adjacent
    agrees(lambda *x: attention(*x, backend=backend), plain, inputs)


@pytest.mark.parametrize("backend", [SHORT, STREAM])
@pytest.mark.parametrize("width", [64, 88])
def test_packed_queries_keys_and_values(agrees, guarded, backend, width):
    qkv = guarded(torch.randn(1, 17, 3, 2, width))
    agrees(lambda x: attention_packed(x, backend=backend), lambda x: plain(*x.unbind(2)), [qkv])


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # in rows beyond the end, which are not stored
@pytest.mark.parametrize("backend", [SHORT, STREAM])
@pytest.mark.parametrize(("factors", "kind"), [((6, -6), {}), ((2, 2), {"scale": 1.0})])
def test_large_scores_of_either_sign_have_their_gradient(backend, factors, kind):
    """Padding scores 0: beside scores near -180 its weight would be infinite if it were not masked.

    The scores' own rounding, 180 times eps, reaches the gradients: nearer to float64 is luck, in the plain form too.
    """
    q, k, v = heads(1, 33, 1, 64)
    inputs = [q.abs() * factors[0], k.abs() * factors[1], v]
    exact = evaluate(lambda *x: plain(*x, **kind), [each.double() for each in inputs])
    for ours, reference in zip(evaluate(lambda *x: attention(*x, backend=backend, **kind), inputs), exact, strict=True):
        assert (ours.double() - reference).norm() <= 1e-3 * reference.norm()


def test_a_second_backward_is_bit_equal():
    inputs = [each.requires_grad_() for each in heads(1, 70, 1, 64)]
    out, weights = attention(*inputs), torch.randn(1, 70, 1, 64)
    first = torch.autograd.grad(out, inputs, weights, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, inputs, weights), strict=True))


def test_one_head_equals_a_softmax():
    """The comparison shares no code with the plain form."""
    q, k, v = heads(1, 21, 1, 64)
    for backend in (SHORT, STREAM):
        out = attention(q, k, v, backend=backend)
        weights = (q[0, :, 0] @ k[0, :, 0].T / math.sqrt(64)).softmax(dim=1)
        torch.testing.assert_close(out[0, :, 0], weights @ v[0, :, 0], rtol=1e-5, atol=1e-6)


def test_opcheck_passes_and_the_whole_graph_compiles():
    qkv = torch.randn(1, 9, 3, 1, 64, requires_grad=True)
    angles = torch.rand(8, 32)
    kind = {"sin": angles.sin(), "cos": angles.cos(), "num_prefix_tokens": 1}
    pattern = Pattern.from_arguments(*qkv.unbind(2), **kind)
    torch.library.opcheck(torch.ops.vfm_kernels.attention_packed.default, (qkv, *pattern, True))
    separate = [part.detach().requires_grad_() for part in qkv.unbind(2)]
    torch.library.opcheck(torch.ops.vfm_kernels.attention.default, (*separate, *pattern.without_rope(), False))

    def loss(qkv: Tensor) -> Tensor:
        return (attention_packed(qkv, **kind) + attention(*qkv.unbind(2), **kind)).sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(function(qkv), qkv)[0] for function in (loss, compiled))
    assert torch.equal(ours, theirs)
