"""All pairs of two sets: the ops' closed forms against autograd."""

import pytest
import torch

from vfm_kernels import chunked, pair_log_sum_exp, pairs

OPS = torch.ops.vfm_kernels


@pytest.mark.parametrize("at_once", [20, 1 << 20], ids=["two queries", "all"])
@pytest.mark.parametrize("columns", [True, False])
def test_the_closed_form_gradient_is_that_of_the_plain_form(agrees, columns, at_once, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK_LOGITS", at_once)

    def wanted(outputs):
        return tuple(outputs) if columns else outputs[0]

    agrees(
        lambda *x: wanted(OPS.pair_log_sum_exp(*x, columns)),
        lambda *x: wanted(pair_log_sum_exp(*x, columns=columns)),
        [torch.randn(5, 4), torch.randn(9, 4), torch.tensor(1.3)],
    )


def test_autocast_makes_nothing_coarser():
    queries, keys, scale = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4), torch.tensor(1.3)
    rows = OPS.pair_log_sum_exp(queries, keys, scale, False)[0]
    gradient = torch.autograd.grad(rows.sum(), queries)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pair_log_sum_exp(queries, keys, scale)[0], rows)
        again = OPS.pair_log_sum_exp(queries, keys, scale, False)[0]
        assert torch.equal(again, rows)
        assert torch.equal(torch.autograd.grad(again.sum(), queries)[0], gradient)


@pytest.mark.parametrize("name", ["cross_entropy_rows", "sigmoid_rows"])
def test_rows_in_place_are_their_twins(name):
    logits = torch.randn(3, 7)
    loss, grad = getattr(chunked, name)(logits.clone(), 2)
    assert torch.equal(getattr(OPS, f"{name}_")(logits, 2), loss)
    assert torch.equal(logits, grad)


def test_meta_tensors_have_shapes_forward_and_backward():
    queries, keys = (torch.randn(n, 4, device="meta", requires_grad=True) for n in (5, 9))
    rows, columns = OPS.pair_log_sum_exp(queries, keys, torch.empty((), device="meta"), True)
    (rows.sum() + columns.sum()).backward()
    assert (rows.shape, columns.shape, keys.grad.shape) == ((5,), (9,), (9, 4))


def test_sets_of_different_widths_are_refused():
    with pytest.raises(ValueError, match="keys"):
        pair_log_sum_exp(torch.randn(2, 3), torch.randn(2, 4), torch.tensor(1.0))
