"""CLIP's loss of all pairs from one product: the kernels against float64 and against chunks, at odd sizes."""

import pytest
import torch

from vfm_kernels import info_nce, use_kernels
from vfm_kernels.launches import recorded_launches

OPS = torch.ops.vfm_kernels


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def plain(*inputs):
    with use_kernels("reference"):
        return info_nce(*inputs)


@pytest.mark.parametrize(("num", "width", "chunk"), [(1, 8, 1), (7, 24, 3), (130, 33, 64), (257, 40, 300)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_loss_and_gradients_equal_those_of_all_logits(agrees, guarded, num, width, chunk, scale):
    inputs = [guarded(unit(num, width)), guarded(unit(num, width)), torch.tensor(scale)]
    with recorded_launches() as launches:
        agrees(lambda *x: info_nce(*x, chunk_size=chunk), plain, inputs, scale)
    assert set(launches) == {"pair_statistics_kernel", "pair_gradients_kernel"}


def test_pairs_whose_logits_all_underflow_against_the_largest(agrees):
    """With a factor of 100, an exponential of less than 0.1 of the largest cosine is zero in fp32."""
    image = torch.nn.functional.one_hot(torch.arange(9) % 4, 8).float()
    inputs = [image, torch.roll(image, 1, 1), torch.tensor(100.0)]
    agrees(lambda *x: info_nce(*x, chunk_size=4), plain, inputs)


def test_ops_follow_the_rules_of_the_library():
    image, text, scale = unit(5, 8), unit(5, 8), torch.tensor(3.0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.pair_statistics.default, (image, text, scale, 0, 2), test_utils=checks)
    *statistics, positives = OPS.pair_statistics(image, text, scale, 0, 2)
    torch.testing.assert_close(positives, 3 * (image * text).sum(dim=1))
    torch.library.opcheck(OPS.pair_gradients.default, (image, text, scale, *statistics, 0, 3, 2), test_utils=checks)


@pytest.mark.parametrize(("num", "all_num", "offset"), [(5, 15, 10), (33, 66, 0), (20, 80, 40)])
def test_rows_of_one_process_among_the_texts_of_all(num, all_num, offset):
    image, text, scale = unit(num, 24), unit(all_num, 24), torch.tensor(30.0)
    logits = 30 * image.double() @ text.double().T
    row_largest, row_total, key_largest, key_total, positive = OPS.pair_statistics(image, text, scale, offset, 4)
    torch.testing.assert_close(row_largest.double() + row_total.log(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(key_largest.double() + key_total.log(), logits.logsumexp(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(positive.double(), logits.diagonal(offset), rtol=1e-5, atol=1e-5)
    statistics = (row_largest, row_total, key_largest, key_total)
    gradients, products = OPS.pair_gradients(image, text, scale, *statistics, offset, 2, num - 2)
    expected = logits.softmax(1) + logits.softmax(0)
    expected.diagonal(offset).sub_(2)
    torch.testing.assert_close(gradients.double(), expected[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(products.double(), (expected * logits)[2:].sum(), rtol=1e-4, atol=1e-3)
