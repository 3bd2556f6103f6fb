"""The loss itself: an `nn.Module` built from its configuration."""

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from vfm_smoothed import SmoothedInfoNce

from vfm_clip.losses import ClipFeatures
from vfm_kernels import gather_with_grad


class SmoothedLoss(nn.Module):
    def __init__(self, config: SmoothedInfoNce) -> None:
        super().__init__()
        self.smoothing = config.smoothing

    def forward(self, features: ClipFeatures) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, loss = features.image, features.text, features.image.new_zeros(())
        start = distributed.get_rank() * len(image) if distributed.is_initialized() else 0
        labels = torch.arange(start, start + len(image), device=image.device)
        for own, other in ((image, text), (text, image)):
            logits = features.logit_scale * own @ gather_with_grad(other).T
            loss = loss + cross_entropy(logits, labels, label_smoothing=self.smoothing) / 2
        return loss, {"smoothed_loss": loss.detach()}
