"""Stochastic depth of part of the batch."""

import pytest
import torch

from vfm_kernels import residual_of_subset


def test_a_fixed_number_of_samples_takes_the_branch_and_costs_are_theirs_alone():
    x, seen = torch.randn(10, 3, 4), []

    def branch(kept):
        seen.append(len(kept))
        return kept.sin()

    result = residual_of_subset(x, branch, 0.4, torch.Generator().manual_seed(0))
    assert seen == [6]
    kept = (result != x).flatten(1).any(dim=1)
    assert kept.sum() == 6
    torch.testing.assert_close(result[kept], x[kept] + x[kept].sin() * 10 / 6)


def test_its_mean_is_that_of_the_whole_branch_and_gradients_flow():
    x, generator = torch.randn(5, 4, requires_grad=True), torch.Generator().manual_seed(1)
    mean = torch.stack([residual_of_subset(x, torch.sin, 0.5, generator) for _ in range(3000)]).mean(dim=0)
    torch.testing.assert_close(mean, x + x.sin(), rtol=0, atol=0.06)
    mean.sum().backward()
    torch.testing.assert_close(x.grad, 1 + x.detach().cos(), rtol=0, atol=0.06)


def test_a_rate_of_zero_keeps_all_and_one_is_refused():
    x = torch.randn(3, 4)
    assert torch.equal(residual_of_subset(x, torch.sin, 0.0), x + x.sin())
    with pytest.raises(ValueError, match="drop_rate is 1"):
        residual_of_subset(x, torch.sin, 1)
