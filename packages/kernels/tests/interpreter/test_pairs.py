"""All pairs of two sets: the kernels against their twins, and against the contrastive losses they serve."""

import pytest
import torch

from vfm_kernels import info_nce, pair_log_sum_exp, pairs, siglip_loss, use_kernels
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


@pytest.mark.parametrize("at_once", [1 << 20, 3000], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_at_a_scale_of_100_probabilities_still_add_up(agrees, guarded, dtype, at_once, monkeypatch):
    """Normalised by the forward's sums they would not, and gradients be four times as far off as the plain form's."""
    monkeypatch.setattr(pairs, "CHUNK_LOGITS", at_once)
    scale = torch.tensor(100.0)
    inputs = [guarded(unit(130, 128, dtype=dtype)), guarded(unit(130, 128, dtype=dtype))]
    agrees(lambda q, k: pair_log_sum_exp(q, k, scale, columns=True), lambda q, k: plain(q, k, scale), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_a_scale_of_100_is_as_near_as_the_plain_ones(dtype):
    """A single number, a sum that cancels: of one draw's errors the smaller is luck, so they are taken over twelve."""
    errors = []
    for _ in range(12):
        queries, keys = unit(64, 128, dtype=dtype), unit(64, 128, dtype=dtype)
        weights, exact = torch.randn(2, 64), None
        for form, wide in ((plain, True), (plain, False), (lambda *x: pair_log_sum_exp(*x, columns=True), False)):
            scale = torch.tensor(100.0, requires_grad=True)
            rows, columns = form(*((queries.double(), keys.double()) if wide else (queries, keys)), scale)
            (gradient,) = torch.autograd.grad((rows * weights[0] + columns * weights[1]).sum(), scale)
            exact = gradient if exact is None else exact
            errors.append(float(gradient - exact))
    _, allowed, error = torch.tensor(errors).view(12, 3).square().mean(dim=0).sqrt()
    assert 0 < error <= 2 * allowed


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


@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_losses_in_chunks_take_the_rows(agrees, guarded, scale):
    inputs = [guarded(unit(7, 24)), guarded(unit(7, 24)), torch.tensor(scale)]

    def plainly(loss):
        with use_kernels("reference"):
            return loss()

    agrees(lambda *x: info_nce(*x, chunk_size=3), lambda *x: plainly(lambda: info_nce(*x)), inputs)
    inputs.append(torch.tensor(-10.0))
    agrees(lambda *x: siglip_loss(*x, chunk_size=3), lambda *x: plainly(lambda: siglip_loss(*x)), inputs)


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
