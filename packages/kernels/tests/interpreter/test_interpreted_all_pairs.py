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
        agrees(lambda *x: info_nce(*x, chunk_size=chunk), plain, inputs)
    assert set(launches) == {"pair_statistics_kernel", "pair_gradients_kernel"}


def test_pairs_whose_logits_all_underflow_against_the_largest(agrees):
    """With a factor of 100, an exponential of less than 0.1 of the largest cosine is zero in fp32."""
    image = torch.nn.functional.one_hot(torch.arange(9) % 4, 8).float()
    inputs = [image, torch.roll(image, 1, 1), torch.tensor(100.0)]
    agrees(lambda *x: info_nce(*x, chunk_size=4), plain, inputs)


def test_ops_follow_the_rules_of_the_library():
    image, text, scale = unit(5, 8), unit(5, 8), torch.tensor(3.0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.pair_statistics.default, (image, text, scale, 2), test_utils=checks)
    *statistics, positives = OPS.pair_statistics(image, text, scale, 2)
    torch.testing.assert_close(positives, 3 * (image * text).sum(dim=1))
    torch.library.opcheck(OPS.pair_gradients.default, (image, text, scale, *statistics, 3, 2), test_utils=checks)
