"""CLIP's loss of all pairs in plain torch: equal to all logits in float64, with fewer products and less memory."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vfm_kernels import info_nce
from vfm_kernels.losses.all_pairs import all_pairs_loss


def products(image, text, *rest, **options):
    return 2 * image[0] * text[0] * image[1]


COUNTED = {  # torch counts no product in place, and knows no op of ours
    torch.ops.aten.addmm_: lambda total, a, b, **options: 2 * a[0] * a[1] * b[1],
    torch.ops.vfm_kernels.pair_statistics: products,
    torch.ops.vfm_kernels.pair_gradients: lambda image, text, *rest, **options: 2 * 8 * text[0] * image[1],
}


def inputs(num: int, width: int) -> list[torch.Tensor]:
    features = [torch.nn.functional.normalize(torch.randn(num, width).double(), dim=1) for _ in range(2)]
    return [value.requires_grad_() for value in (*features, torch.tensor(20.0).double())]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_loss_and_gradients_equal_those_of_all_logits(chunk):
    leaves = inputs(7, 5)
    loss, expected = all_pairs_loss(*leaves, chunk), info_nce(*leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(3 * expected, leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_third_of_the_products_of_chunks_is_saved():
    num, width, counts = 64, 16, []
    for loss in (lambda *x: all_pairs_loss(*x, 8), lambda *x: info_nce(*x, chunk_size=8)):
        leaves = inputs(num, width)
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            loss(*leaves).backward()
        counts.append(counter.get_total_flops())
    assert counts == [8 * num**2 * width, 12 * num**2 * width]
