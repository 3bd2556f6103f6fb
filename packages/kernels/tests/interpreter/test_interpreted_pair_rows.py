"""Contrastive losses of rows of logits: the kernels against their plain forms, and in the losses that use them."""

import pytest
import torch

from vfm_kernels import info_nce, siglip_loss, use_kernels
from vfm_kernels.losses.chunked import cross_entropy_rows, sigmoid_rows

OPS = torch.ops.vfm_kernels


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize(
    ("op", "plain"),
    [(OPS.cross_entropy_rows_.default, cross_entropy_rows), (OPS.sigmoid_rows_.default, sigmoid_rows)],
    ids=["cross entropy", "sigmoid"],
)
@pytest.mark.parametrize(("num_rows", "num_keys", "first"), [(1, 1, 0), (3, 17, 14), (2, 5000, 4100)])
def test_rows_of_logits_become_their_gradient(guarded, op, plain, num_rows, num_keys, first):
    logits = guarded(torch.randn(num_rows, num_keys) * 20)
    with use_kernels("reference"):
        expected_loss, expected = plain(logits.double(), first)
    loss = op(logits, first)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=2e-6)
    torch.library.opcheck(op, (torch.randn(num_rows, num_keys), first), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_losses_in_chunks_use_the_kernels(agrees, guarded, scale):
    inputs = [guarded(unit(7, 24)), guarded(unit(7, 24)), torch.tensor(scale)]

    def reference(loss):
        with use_kernels("reference"):
            return loss()

    agrees(lambda *x: info_nce(*x, chunk_size=3), lambda *x: reference(lambda: info_nce(*x)), inputs, scale)
    inputs.append(torch.tensor(-10.0))
    agrees(lambda *x: siglip_loss(*x, chunk_size=3), lambda *x: reference(lambda: siglip_loss(*x)), inputs, scale)


@pytest.mark.parametrize("hidden", [slice(0, 9), slice(1, 5000)], ids=["some", "all others"])
def test_rows_without_some_keys(guarded, hidden):
    logits = torch.randn(2, 5000)
    logits[:, hidden] = -torch.inf
    logits.diagonal(9).fill_(1.0)
    logits = guarded(logits)
    with use_kernels("reference"):
        expected_loss, expected = cross_entropy_rows(logits.double(), 9)
    loss = OPS.cross_entropy_rows_.default(logits, 9)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=2e-6)


def test_distinct_samples_in_chunks_use_the_kernels(agrees, guarded):
    groups = torch.tensor([3, 3, 1, 3, 2, 1, 3])
    inputs = [guarded(unit(7, 24)), guarded(unit(7, 24)), torch.tensor(20.0)]

    def reference(*x):
        with use_kernels("reference"):
            return info_nce(*x, all_groups=groups)

    agrees(lambda *x: info_nce(*x, all_groups=groups, chunk_size=3), reference, inputs)
