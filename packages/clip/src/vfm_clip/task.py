"""Contrastive training of a CLIP model as a task for `vfm.train.fit`; its accumulation has the big batch's gradient."""

# n samples of this process, N of all processes, D width of the joint space

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm.artifacts import ClipCheckpoint
from vfm.models.clip import ClipModel, save_clip
from vfm.train import Batch, Call, Metrics, Task
from vfm_kernels import gather_with_grad, info_nce


@dataclass(frozen=True)
class _FeatureGradients:
    """What the loss says about the features of one micro-batch, and about the temperature (in the last one only)."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor


class ClipTask(Task):
    """CLIP's symmetric InfoNCE over the batch of all processes.

    Args:
        clip: the model; its `logit_scale` parameter is the logarithm of the temperature's inverse.
        logit_scale_max: the temperature's inverse is kept at or below this (the paper: 100).
        train_logit_scale: False keeps it where it starts.

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020); accumulation: Gao et al. 2021 (arXiv:2101.06983).
    """

    def __init__(self, clip: ClipModel, *, logit_scale_max: float = 100.0, train_logit_scale: bool = True) -> None:
        super().__init__()
        self.model, self.module = clip, clip.module
        self.max_log_scale = math.log(logit_scale_max)
        self.log_scale.requires_grad_(train_logit_scale)

    @property
    def log_scale(self) -> nn.Parameter:
        """The learned logarithm of the temperature's inverse."""
        parameter = self.module.logit_scale
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of this process' samples against those of all.

        A batch that carries `mode` is part of an accumulated step: "features" only encodes, and a
        `_FeatureGradients` makes the loss whose gradient is this micro-batch's share of the whole step's.
        """
        image, text = self._encode(batch)
        mode = batch.get("mode")
        if mode == "features":
            return image.sum() * 0, {"image_features": image, "text_features": text}
        if isinstance(mode, _FeatureGradients):
            surrogate = (image * mode.image).sum() + (text * mode.text).sum()
            return surrogate + self.log_scale.exp() * mode.logit_scale, {}
        return self._loss(image, text, self.log_scale.exp())

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
        images, texts = self._features(call, micro_batches, reseed)
        image, text = (torch.cat(parts).requires_grad_() for parts in (images, texts))
        scale = self.log_scale.detach().exp().requires_grad_()
        with torch.enable_grad():
            loss, metrics = self._loss(image, text, scale)
        image_grad, text_grad, scale_grad = torch.autograd.grad(loss, [image, text, scale])
        sizes = [len(part) for part in images]
        shares = zip(torch.split(image_grad, sizes), torch.split(text_grad, sizes), strict=True)
        for index, (batch, (of_image, of_text)) in enumerate(zip(micro_batches, shares, strict=True)):
            reseed(index)
            last = index == len(micro_batches) - 1
            gradients = _FeatureGradients(of_image, of_text, scale_grad * float(last))
            backward(call({**batch, "mode": gradients})[0])
        return {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def after_step(self) -> None:
        """Keeps the temperature's inverse between 1 and its largest value."""
        with torch.no_grad():
            self.log_scale.clamp_(0, self.max_log_scale)

    def no_weight_decay(self) -> set[str]:
        """Positions, class token and temperature are not decayed."""
        names = {"positional_embedding", "class_embedding", "pos_embed", "cls_token", "logit_scale"}
        matching = {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in names}
        return super().no_weight_decay() | matching

    def export(self, directory: Path) -> ClipCheckpoint:
        """The model in open_clip's layout."""
        return save_clip(self.model, directory)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of unit length, (n, D) each."""
        pixels = self.model.pixels(batch["images"])
        image = self.module.encode_image(pixels, normalize=True)  # type: ignore[operator]
        return image, self.module.encode_text(batch["tokens"], normalize=True)  # type: ignore[operator]

    def _features(
        self, call: Call, micro_batches: Sequence[Batch], reseed: Callable[[int], None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        images, texts = [], []
        with torch.no_grad():
            for index, batch in enumerate(micro_batches):
                reseed(index)
                _, features = call({**batch, "mode": "features"})
                images.append(features["image_features"])
                texts.append(features["text_features"])
        return images, texts

    def _loss(self, image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Metrics]:
        rank = dist.get_rank() if dist.is_initialized() else 0
        images, texts = gather_with_grad(image), gather_with_grad(text)
        loss = info_nce(image, text, logit_scale, rank=rank, all_image_features=images, all_text_features=texts)
        metrics = {"contrastive_loss": loss, "logit_scale": logit_scale}
        return loss, {name: value.detach() for name, value in metrics.items()}
