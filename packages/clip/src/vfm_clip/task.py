"""Contrastive training of a CLIP model as a task for `vfm.train.fit`; its accumulation has the big batch's gradient."""

# n samples of this process, D width of the joint space

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm.artifacts import ClipCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel, save_clip
from vfm.train import Batch, Call, Metrics, Task
from vfm_kernels import gather_with_grad, info_nce


@dataclass(frozen=True)
class FeatureGradients:
    """What the loss of a whole step says about one micro-batch: the gradients of its features, its share of another."""

    image: Tensor  # (n, D)
    text: Tensor  # (n, D)
    logit_scale: Tensor  # scalar


class ClipTask(Task):
    """CLIP's symmetric InfoNCE over the batch of all processes.

    What is trained is what takes a gradient when the task is made (`vfm_clip.towers.lock_towers`).

    Args:
        clip: the model; its `logit_scale` parameter is the logarithm of the temperature's inverse.
        logit_scale_max: the temperature's inverse is kept between 1 and this (the paper: 100).
        train_logit_scale: False keeps it exactly where it starts.
        loss_chunk_size: rows of logits held at once, for batches whose logits do not fit; the result is the same.

    Raises:
        UserError: the model is more than two towers (CoCa's captioner would stay untrained).

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020); accumulation: Gao et al. 2021 (arXiv:2101.06983).
    """

    def __init__(
        self,
        clip: ClipModel,
        *,
        logit_scale_max: float = 100.0,
        train_logit_scale: bool = True,
        loss_chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if "multimodal_cfg" in clip.config:
            raise UserError(f"{clip.name} writes captions too (CoCa), which a contrastive loss alone would not train")
        self.model, self.module = clip, clip.module
        self.max_log_scale, self.loss_chunk_size = math.log(logit_scale_max), loss_chunk_size
        self.log_scale.requires_grad_(train_logit_scale)
        if isinstance(bias := getattr(self.module, "logit_bias", None), nn.Parameter):
            bias.requires_grad_(False)  # SigLIP's; a softmax over the batch does not see it

    @property
    def log_scale(self) -> nn.Parameter:
        """The learned logarithm of the temperature's inverse."""
        parameter = self.module.logit_scale
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def logit_scale(self) -> Tensor:
        """The temperature's inverse, a scalar."""
        return self.log_scale.exp().reshape(())

    def train(self, mode: bool = True) -> ClipTask:
        """As always, but what is locked stays in evaluation mode: no drop path in it, no new batch statistics."""
        super().train(mode)
        for part in self.module.modules():
            weights = list(part.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                part.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of this process' samples against those of all.

        A step of several micro-batches comes here twice for each (`accumulate`): with `only_features` for its features
        alone, then with its `gradients` for a loss that has just those.
        """
        image, text = self._encode(batch)
        if "only_features" in batch:
            # Not finite where the features are not, so that the loop can tell whose fault a NaN is.
            return (image.sum() + text.sum()) * 0, {"image": image, "text": text}
        if "gradients" in batch:
            grad: FeatureGradients = batch["gradients"]
            return (image * grad.image).sum() + (text * grad.text).sum() + self.logit_scale * grad.logit_scale, {}
        return self._loss(image, text, self.logit_scale)

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """The gradient of the whole batch in the memory of a micro-batch: encode all, take the loss, replay each.

        Each micro-batch is encoded twice, with the same random draws, so dropout and drop path do not disturb it.
        """
        if len(micro_batches) == 1:
            return super().accumulate(call, micro_batches, backward, reseed)
        features = []
        with torch.no_grad():
            for index, batch in enumerate(micro_batches):
                reseed(index)
                features.append(call({**batch, "only_features": True})[1])
        gradients, metrics = self._feature_gradients([f["image"] for f in features], [f["text"] for f in features])
        for index, (batch, grad) in enumerate(zip(micro_batches, gradients, strict=True)):
            reseed(index)
            backward(call({**batch, "gradients": grad})[0])
        return metrics

    def after_step(self) -> None:
        """Keeps a trained temperature's inverse between 1 and its largest value."""
        if self.log_scale.requires_grad:
            with torch.no_grad():
                self.log_scale.clamp_(0, self.max_log_scale)

    def encoder(self) -> ClipModel:
        """The model in training."""
        return self.model

    def export(self, directory: Path) -> ClipCheckpoint:
        """The model in open_clip's layout."""
        return save_clip(self.model, directory)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of unit length, (n, D) each."""
        towers: Any = self.module
        image: Tensor = towers.encode_image(self.model.pixels(batch["images"]), normalize=True)
        return image, towers.encode_text(batch["tokens"], normalize=True)

    def _feature_gradients(
        self, images: Sequence[Tensor], texts: Sequence[Tensor]
    ) -> tuple[list[FeatureGradients], Metrics]:
        """What the whole step's loss says about each micro-batch, and the step's metrics."""
        image, text = torch.cat(list(images)).requires_grad_(), torch.cat(list(texts)).requires_grad_()
        scale = self.logit_scale.detach().requires_grad_()
        loss, metrics = self._loss(image, text, scale)
        of_image, of_text, of_scale = torch.autograd.grad(loss, [image, text, scale])
        sizes = [len(part) for part in images]
        shares = zip(torch.split(of_image, sizes), torch.split(of_text, sizes), strict=True)
        gradients = [FeatureGradients(*share, of_scale / len(sizes)) for share in shares]
        return gradients, {**metrics, "loss": loss.detach()}

    def _loss(self, image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Metrics]:
        loss = info_nce(
            image,
            text,
            logit_scale,
            all_image_features=gather_with_grad(image),
            all_text_features=gather_with_grad(text),
            rank=dist.get_rank() if dist.is_initialized() else 0,
            chunk_size=self.loss_chunk_size,
        )
        return loss, {"contrastive_loss": loss.detach(), "logit_scale": logit_scale.detach()}
