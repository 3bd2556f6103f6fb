"""A batch norm without parameters over all samples of a step, then a linear layer, as a linear probe."""

# B batch, n samples of a step in this process, D width, C classes

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["NormedHead"]


class NormedHead(nn.Module):
    """A batch norm without parameters before a linear head. `folded` merges both into a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6)
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        """Compute class scores, (B, D) to (B, C). In training the batch must be the whole step."""
        scores: Tensor = self.linear(self.norm(features))
        return scores

    def of_step(self, features: Tensor) -> Tensor:
        """Compute class scores for all samples of a step, (n, D) to (n, C), normalised over all processes."""
        if dist.is_initialized():
            normalised = self._normalised(features)
        else:
            normalised = self.norm(features)
        scores: Tensor = self.linear(normalised)
        return scores

    def _normalised(self, features: Tensor) -> Tensor:
        """Apply `norm` as in training, with gradients, over the samples of all processes."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = len(features) * dist.get_world_size()  # all processes have the same share
        mean = all_reduce(features.sum(dim=0)) / count  # type: ignore[no-untyped-call]
        # In two passes, since the mean of squares minus the square of the mean cancels in fp32.
        var = all_reduce((features - mean).square().sum(dim=0)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert norm.momentum is not None
            norm.running_mean.lerp_(mean, norm.momentum)
            # torch's running variance is the unbiased one.
            norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
        normalised: Tensor = (features - mean) / (var + norm.eps).sqrt()
        return normalised

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Fold norm and linear layer into a linear layer with the same outputs in evaluation mode."""
        linear = nn.Linear(self.linear.in_features, self.linear.out_features)
        mean = self.norm.running_mean
        var = self.norm.running_var
        assert mean is not None
        assert var is not None
        weight = self.linear.weight / (var + self.norm.eps).sqrt()
        linear.weight.copy_(weight)
        linear.bias.copy_(self.linear.bias - weight @ mean)
        return linear
