"""Attention: the plain form against torch's own, and the op's closed-form gradient against autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vfm_kernels import attention, attention_packed
from vfm_kernels.multihead.attention_plain import attention_plain
from vfm_kernels.multihead.rope import rotate
from vfm_kernels.pattern import Pattern

OPS = torch.ops.vfm_kernels
ENDS = torch.tensor([0, 2, 2, 7], dtype=torch.int32)


def heads(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for _ in range(3)]


def torchs(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), **options).transpose(1, 2)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
def test_it_equals_torch(backend, causal):
    inputs = heads(2, 5, 3, 8)
    ours = attention(*inputs, causal=causal, scale=0.3, backend=backend)
    torch.testing.assert_close(ours, torchs(*inputs, is_causal=causal, scale=0.3))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
def test_sequences_do_not_see_each_other(backend, causal):
    inputs = heads(1, 7, 2, 8)
    ours = attention(*inputs, cu_seqlens=ENDS, max_seqlen=5, causal=causal, backend=backend)
    for start, end in ((0, 2), (2, 7)):
        alone = torchs(*(each[:, start:end] for each in inputs), is_causal=causal)
        torch.testing.assert_close(ours[:, start:end], alone)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_angles_rotate_queries_and_keys_only(backend):
    q, k, v = (each.float() for each in heads(2, 5, 3, 8))
    angles = torch.rand(4, 4)
    tables = (angles.sin(), angles.cos())
    ours = attention(q, k, v, sin=tables[0], cos=tables[1], num_prefix_tokens=1, backend=backend)
    expanded = [table.expand(2, -1, -1) for table in tables]
    q, k = (rotate(each, *expanded, num_prefix_tokens=1, positions=None) for each in (q, k))
    torch.testing.assert_close(ours, torchs(q, k, v))


def kinds() -> dict[str, dict]:
    angles = torch.rand(7, 4) * 6
    rotated = {"sin": angles.sin(), "cos": angles.cos(), "positions": torch.randint(-1, 7, (1, 7))}
    return {"plain": {}, "causal": {"causal": True}, "rotated": rotated, "sequences": {"cu_seqlens": ENDS, **rotated}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", kinds())
def test_the_closed_form_gradient_is_that_of_the_plain_form(agrees, kind, packed):
    inputs, options = heads(1, 7, 2, 8, dtype=torch.float32), kinds()[kind]
    pattern = Pattern.from_arguments(*inputs, **options)

    def op(*x: Tensor) -> Tensor:
        return (OPS.attention_packed if packed else OPS.attention)(*x, *pattern, False)[0]

    def plain(*x: Tensor) -> Tensor:
        q, k, v = x[0].unbind(2) if packed else x
        dtype = torch.promote_types(q.dtype, torch.float32)
        tables = {name: options[name].to(dtype) for name in ("sin", "cos") if name in options}
        return attention_plain(q, k, v, Pattern.from_arguments(q, k, v, **options | tables))[0]

    agrees(op, plain, [torch.stack(inputs, dim=2)] if packed else inputs)
    leaves = [leaf.requires_grad_() for leaf in ([torch.stack(inputs, dim=2)] if packed else inputs)]
    torch.library.opcheck((OPS.attention_packed if packed else OPS.attention).default, (*leaves, *pattern, False))


def test_packed_heads_equal_separate_ones():
    qkv = torch.randn(2, 5, 3, 2, 8)
    assert torch.equal(attention_packed(qkv, causal=True), attention(*qkv.unbind(2), causal=True))


def test_meta_tensors_have_shapes_forward_and_backward():
    qkv = torch.randn(2, 5, 3, 2, 8, device="meta", requires_grad=True)
    out, lse = OPS.attention_packed(qkv, *Pattern.from_arguments(*qkv.unbind(2)), False)
    out.sum().backward()
    assert (out.shape, lse.shape, qkv.grad.shape) == ((2, 5, 2, 8), (2, 2, 5), qkv.shape)


def test_on_a_cpu_it_is_one_call_of_torch():
    inputs = [each.requires_grad_() for each in heads(2, 5, 3, 8)]
    assert torch.equal(attention(*inputs), torchs(*inputs))
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), torchs(*inputs))


def test_arguments_that_do_not_fit_raise():
    q, k, v = heads(2, 5, 3, 8)
    table = torch.rand(5, 4)
    with pytest.raises(ValueError, match="of equal shape"):
        attention(q, k[:, 1:], v)
    with pytest.raises(ValueError, match="of one dtype"):
        attention(q, k.float(), v)
    with pytest.raises(ValueError, match="on one device"):
        attention(q, k, v.to("meta"))
    with pytest.raises(ValueError, match="needs a batch of 1"):
        attention(q, k, v, cu_seqlens=ENDS)
    with pytest.raises(ValueError, match="must be given together"):
        attention(q, k, v, sin=table)
    with pytest.raises(ValueError, match="a table of 5 rows does not fit 5 tokens with 1 prefix"):
        attention(q, k, v, sin=table, cos=table, num_prefix_tokens=1)
    with pytest.raises(ValueError, match="for heads of 8"):
        attention(q, k, v, sin=table[:, :3], cos=table[:, :3])
    with pytest.raises(ValueError, match="expected positions of shape"):
        attention(q, k, v, sin=table, cos=table, positions=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="must be above 0, got -1"):
        attention(q, k, v, scale=-1.0)
    with pytest.raises(ValueError, match="expected qkv of shape"):
        attention_packed(q)


WRONG_VALUES = [
    ({"max_seqlen": 4}, "expected max_seqlen of at least 5, the longest sequence, got 4"),
    ({"cu_seqlens": ENDS - 1}, "expected cu_seqlens that rise from 0 to 7, the number of tokens, got \\[-1, 1, 1, 6]"),
    ({"cu_seqlens": ENDS[[0, 2, 1, 0, 3]]}, "expected cu_seqlens that rise from 0 to 7"),
    ({"positions": torch.arange(7)[None] + 1}, "expected positions below 7, the number of rows of sin and cos, got 7"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_VALUES)
def test_lengths_and_positions_that_kernels_do_not_check_raise(wrong, message):
    qkv = torch.randn(1, 7, 3, 2, 8)
    kind = kinds()["sequences"] | {"max_seqlen": 5}
    attention_packed(qkv, **kind)
    for run in (lambda **kind: attention(*qkv.unbind(2), **kind), lambda **kind: attention_packed(qkv, **kind)):
        with pytest.raises(ValueError, match=message):
            run(**kind | wrong)


@pytest.mark.parametrize("number", range(len(WRONG_VALUES)))
def test_without_reading_them_lengths_and_positions_are_asserted(number):
    """In a graph, as on a GPU, the host cannot read them: the graph is whole, and its assertion stops it."""
    qkv = torch.randn(1, 7, 3, 2, 8)
    kind = kinds()["sequences"] | {"max_seqlen": 5}
    wrong, _ = WRONG_VALUES[number]
    compiled = torch.compile(attention_packed, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(qkv, **kind), attention_packed(qkv, **kind))
    asserted = {0: "expected sequences of at most max_seqlen", 3: "expected positions below the number of rows"}
    with pytest.raises(RuntimeError, match=asserted.get(number, "expected cu_seqlens that rise from 0")):
        compiled(qkv, **kind | wrong)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_compiled_call_takes_rows_of_other_lengths(backend):
    """Batches of packed sequences have another longest sequence each time. A forced backend is chosen by sizes."""
    torch.compiler.reset()  # the graphs of the other tests count as versions of this function
    compiled = torch.compile(attention_packed, fullgraph=True, backend="eager")
    for ends in ([0, 2, 7], [0, 3, 8], [0, 1, 5, 12]):
        qkv, lengths = torch.randn(1, ends[-1], 3, 2, 8), torch.tensor(ends, dtype=torch.int32)
        kind = {"cu_seqlens": lengths, "max_seqlen": int(lengths.diff().max()), "backend": backend}
        torch.testing.assert_close(compiled(qkv, **kind), attention_packed(qkv, **kind))


@pytest.mark.parametrize("packed", [False, True])
def test_torchs_counters_know_the_ops(packed):
    """As many operations as torch counts for its own attention, forward and backward."""
    qkv = torch.randn(2, 9, 3, 4, 8, requires_grad=True)
    pattern = (None, None, None, 0, None, 9, False, 0.3, False)

    def ours() -> torch.Tensor:
        if packed:
            return torch.ops.vfm_kernels.attention_packed(qkv, *pattern)[0]
        return torch.ops.vfm_kernels.attention(*qkv.unbind(2), *pattern)[0]

    def theirs() -> torch.Tensor:
        heads = (part.transpose(1, 2) for part in qkv.unbind(2))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads)[0]

    by_torch = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    counts = []
    for run in (ours, theirs):
        with FlopCounterMode(display=False, custom_mapping=by_torch) as counter:
            run().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
