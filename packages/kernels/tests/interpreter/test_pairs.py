"""All pairs of two sets: the kernels against their twins, and against the contrastive losses they serve."""

import pytest
import torch

from vfm_kernels import info_nce, pair_log_sum_exp, use_kernels
from vfm_kernels.chunked import cross_entropy_rows, sigmoid_rows

OPS = torch.ops.vfm_kernels


def unit(*shape, dtype=torch.float32):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1).to(dtype)


def plain(queries, keys, scale):
    with use_kernels("reference"):
        return pair_log_sum_exp(queries, keys, scale, columns=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_log_sum_exp_of_rows_and_columns(agrees, guarded, dtype):
    inputs = [guarded(unit(17, 40, dtype=dtype)), guarded(unit(130, 40, dtype=dtype)), torch.tensor(20.0)]
    agrees(lambda *x: pair_log_sum_exp(*x, columns=True), plain, inputs)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (129, 63)])
def test_odd_sizes(agrees, guarded, num_queries, num_keys):
    inputs = [guarded(unit(num_queries, 17)), guarded(unit(num_keys, 17)), torch.tensor(14.0)]
    agrees(lambda *x: pair_log_sum_exp(*x)[0], lambda *x: plain(*x)[0], inputs)


def test_a_row_far_below_the_largest_logit_has_its_log_sum_exp():
    """With the bound on cosines in the place of the row's maximum, exp would be 0 and its logarithm -inf."""
    queries, keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    rows, _ = pair_log_sum_exp(queries, keys, torch.tensor(300.0))
    assert rows.tolist() == pytest.approx([300, -240])


def test_one_tile_serves_both_directions_of_clips_loss():
    image, text, scale = unit(30, 16), unit(30, 16), torch.tensor(10.0)
    leaves = [t.requires_grad_() for t in (image, text, scale)]
    rows, columns = pair_log_sum_exp(*leaves, columns=True)
    loss = (rows.mean() + columns.mean()) / 2 - scale * (image * text).sum(dim=1).mean()
    expected = info_nce(*leaves)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "twin"),
    [(OPS.cross_entropy_rows_.default, cross_entropy_rows), (OPS.sigmoid_rows_.default, sigmoid_rows)],
    ids=["cross entropy", "sigmoid"],
)
@pytest.mark.parametrize(("num_rows", "num_keys", "first"), [(1, 1, 0), (3, 17, 14), (2, 5000, 4100)])
def test_rows_of_logits_become_their_gradient(guarded, op, twin, num_rows, num_keys, first):
    logits = guarded(torch.randn(num_rows, num_keys) * 20)
    with use_kernels("reference"):
        expected_loss, expected = twin(logits.double(), first)
    loss = op(logits, first)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=2e-6)
    torch.library.opcheck(op, (torch.randn(num_rows, num_keys), first), test_utils=("test_schema", "test_faketensor"))


def test_torch_approves_of_the_op_and_compiles_it_whole():
    leaves = [t.requires_grad_() for t in (unit(5, 8), unit(6, 8), torch.tensor(7.0))]
    torch.library.opcheck(OPS.pair_log_sum_exp.default, (*leaves, True))
    torch.library.opcheck(OPS.pair_log_sum_exp.default, (*leaves, False))

    def loss():
        rows, columns = pair_log_sum_exp(*leaves, columns=True)
        return rows.sum() + columns.sum()

    ours = torch.autograd.grad(loss(), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, compiled, strict=True))
