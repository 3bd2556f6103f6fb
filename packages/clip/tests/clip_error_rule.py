"""The error rule of this package's numerical tests, which holds on any processor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MULTIPLE = 3  # of the plain form's own error: an order of summation that is unlucky here may be lucky elsewhere
FLOOR = 8 * torch.finfo(torch.float32).eps  # of the largest entry: the plain form may have almost no error


def assert_as_exact(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """Assert that fp32 results are as near to float64 as those of the plain form.

    For each tensor, the largest error against float64 is at most `MULTIPLE` times the plain fp32 form's own, plus
    `FLOOR` of the largest entry. A fixed tolerance would depend on the vector width and the threads of the processor.

    Args:
        ours: results to check, by name.
        plain: results of the plain form in fp32.
        exact: results of the plain form in float64; none may be zero everywhere.
    """
    assert ours.keys() == plain.keys() == exact.keys()
    for name, reference in exact.items():
        largest = reference.abs().max().item()
        assert largest > 0, name
        error, own = ((tensor[name].double() - reference).abs().max().item() for tensor in (ours, plain))
        allowed = MULTIPLE * own + FLOOR * largest
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}, plain form {own:.3g}"
