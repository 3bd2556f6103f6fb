"""CLIP's loss of all pairs in plain torch: equal to all logits in float64, with fewer products and less memory."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from live_bytes import LiveBytes
from vfm_kernels import info_nce
from vfm_kernels.losses import chunked
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
    image, text, scale = leaves
    loss, expected = all_pairs_loss(image, text, scale, chunk), info_nce(image, text, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(3 * expected, leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_third_of_the_products_of_chunks_is_saved():
    num, width, counts = 64, 16, []
    for loss in (partial(all_pairs_loss, chunk_size=8), partial(info_nce, chunk_size=8)):
        leaves = inputs(num, width)
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            loss(*leaves).backward()
        counts.append(counter.get_total_flops())
    assert counts == [8 * num**2 * width, 12 * num**2 * width]


NUM, WIDTH, CHUNK = 32_768, 1024, 4096


def all_pairs(image, text, scale):
    return all_pairs_loss(image, text, scale, CHUNK)


def chunks_by_kernel(image, text, scale):
    """Compute both directions in chunks as on a GPU, where a kernel overwrites logits with their gradients."""

    def rows(logits, first):
        return chunked._ROW_OPS["cross_entropy_rows"](logits, first), logits

    none = torch.zeros_like(scale)
    both = [
        chunked.chunked_pair_loss(*features, scale, none, rows, 0, CHUNK) for features in ((image, text), (text, image))
    ]
    return sum(both) / (2 * len(image))


def bytes_of(loss) -> tuple[int, int, int]:
    """Count the largest bytes of the forward pass, those that it keeps, and the largest of the backward pass."""
    with FakeTensorMode(), LiveBytes() as live:
        image, text = (torch.empty(NUM, WIDTH, requires_grad=True) for _ in range(2))
        scale = torch.ones((), requires_grad=True)
        before = live.now
        value = loss(image, text, scale)
        forward, kept, live.peak = live.peak, live.now, live.now
        value.backward()
    return forward - before, kept - before, live.peak - before


def test_one_chunk_of_gradients_is_in_memory_and_no_logits():
    """The table of docs/kernels.md; what kernels allocate inside of an op, its partial statistics, is not counted."""
    chunk, features = 4 * CHUNK * NUM, 4 * NUM * WIDTH
    forward, kept, backward = bytes_of(all_pairs)
    assert kept <= forward < 2e6
    gradients_of_features = 2 * features + 4 * CHUNK * WIDTH  # and of a chunk of them
    assert 0 <= backward - chunk - gradients_of_features < 2e6


def test_chunks_keep_gradients_and_hold_two_chunks():
    """Cosines and logits of a chunk, which become the gradients, next to the gradients of two directions."""
    chunk, features = 4 * CHUNK * NUM, 4 * NUM * WIDTH
    forward, kept, backward = bytes_of(chunks_by_kernel)
    assert 0 <= forward - 2 * chunk - 4 * features - 4 * CHUNK * WIDTH < 2e6
    assert 0 <= kept - 4 * features < 2e6
    assert backward <= 6 * features + 2e6
