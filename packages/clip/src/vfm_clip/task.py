"""Contrastive training of a CLIP model as a task for `vfm.train.fit`; its accumulation has the big batch's gradient."""

# n samples of this process, D width of the joint space

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.artifacts import ClipCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel, save_clip
from vfm.train import Batch, Call, Frozen, Metrics, ParamGroup, Task
from vfm_clip.groups import Rates, parameter_groups
from vfm_clip.losses import Features, InfoNce, Siglip
from vfm_clip.spread import repeats, spread
from vfm_clip.towers import patch_dropouts
from vfm_kernels import Kernels, accelerated, padded


class ClipTask(Task):
    """A contrastive loss over the batch of all processes.

    What is trained is what takes a gradient when the task is made (`vfm_clip.towers.lock_towers`).

    Args:
        clip: the model; its `logit_scale` parameter is the logarithm of the temperature's inverse.
        loss: which one; SigLIP's wants a model with a `logit_bias`.
        teacher: the model that `Distillation` learns from; it is not trained.
        logit_scale_max: the temperature's inverse is kept between 1 and this (the paper: 100).
        train_logit_scale: False keeps it exactly where it starts.
        loss_chunk_size: rows of logits held at once, for batches whose logits do not fit; the result is the same.
        image: how fast the vision tower learns.
        text: how fast the text tower learns.
        unmasked_from: the step from which patch dropout is over.

    Raises:
        UserError: the model is more than two towers (CoCa's captioner would stay untrained).

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020); accumulation: Gao et al. 2021 (arXiv:2101.06983).
    """

    def __init__(
        self,
        clip: ClipModel,
        *,
        loss: InfoNce | Siglip = InfoNce(),  # noqa: B008 (frozen)
        teacher: ClipModel | None = None,
        logit_scale_max: float = 100.0,
        train_logit_scale: bool = True,
        loss_chunk_size: int | None = None,
        image: Rates = Rates(),  # noqa: B008 (frozen)
        text: Rates = Rates(),  # noqa: B008 (frozen)
        unmasked_from: int | None = None,
    ) -> None:
        super().__init__()
        if "multimodal_cfg" in clip.config:
            raise UserError(f"{clip.name} writes captions too (CoCa), which a contrastive loss alone would not train")
        self.model, self.module, self.loss = clip, clip.module, loss
        self.teacher, self.frozen_teacher = teacher, Frozen(teacher.module) if teacher else None
        self.max_log_scale, self.loss_chunk_size = math.log(logit_scale_max), loss_chunk_size
        self.image, self.text, self.unmasked_from = image, text, unmasked_from
        self.log_scale.requires_grad_(train_logit_scale)
        if (bias := self.logit_bias) is not None:
            bias.requires_grad_(isinstance(loss, Siglip))  # a softmax over the batch does not see it

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

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """SigLIP's, where the model has one."""
        bias = getattr(self.module, "logit_bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

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
        alone, then with their `gradients` for a loss that has just those.
        """
        image, text = _encode(self.model, batch)
        if "gradients" in batch:
            inputs = {"image": image, "text": text, **self._scalars()}
            return torch.stack([(inputs[name] * grad).sum() for name, grad in batch["gradients"].items()]).sum(), {}
        taught = self._taught(batch)
        if "only_features" in batch:
            # Not finite where the features are not, so that the loop can tell whose fault a NaN is.
            return (image.sum() + text.sum()) * 0, {"image": image, "text": text, **taught}
        return self._loss({"image": image, "text": text, **self._scalars()}, taught)

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """The gradient of the whole batch in the memory of a micro-batch: encode all, take the loss, replay each.

        Each micro-batch is encoded twice, with the same random draws, so dropout and drop path do not disturb it; a
        teacher encodes it once.
        """
        if len(micro_batches) == 1:
            metrics = super().accumulate(call, micro_batches, backward, reseed)
        else:
            parts = []
            with torch.no_grad():
                for index, batch in enumerate(micro_batches):
                    reseed(index)
                    parts.append(call({**batch, "only_features": True})[1])
            gradients, metrics = self._gradients(parts)
            for index, (batch, shares) in enumerate(zip(micro_batches, gradients, strict=True)):
                reseed(index)
                backward(call({**batch, "gradients": shares})[0])
        return {**metrics, **repeats(micro_batches)}

    def parameter_groups(self) -> list[ParamGroup]:
        """By tower and layer, where they learn at rates of their own."""
        exempt = {name.removeprefix("module.") for name in self.no_weight_decay()}
        return parameter_groups(self.model, exempt, self.image, self.text)

    def before_step(self, step: int) -> None:
        """Ends patch dropout where the last, unmasked stretch begins."""
        if self.unmasked_from is not None and step >= self.unmasked_from:
            for part in patch_dropouts(self.module):
                part.prob = 0.0

    def after_step(self) -> None:
        """Keeps a trained temperature's inverse between 1 and its largest value."""
        if self.log_scale.requires_grad:
            with torch.no_grad():
                self.log_scale.clamp_(0, self.max_log_scale)

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """In both towers, and in those of a teacher."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """In the model and its teacher."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> ClipModel:
        """The model in training."""
        return self.model

    def export(self, directory: Path) -> ClipCheckpoint:
        """The model in open_clip's layout."""
        return save_clip(self.model, directory)

    def _scalars(self) -> dict[str, Tensor]:
        """What makes logits of cosines."""
        bias = self.logit_bias if isinstance(self.loss, Siglip) else None
        return {"logit_scale": self.logit_scale, **({} if bias is None else {"logit_bias": bias.reshape(())})}

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Metrics:
        """What the teacher makes of the same samples, where there is one."""
        if not self.teacher:
            return {}
        image, text = _encode(self.teacher, batch)
        return {"teacher_image": image, "teacher_text": text}

    def _gradients(self, parts: Sequence[Metrics]) -> tuple[list[Metrics], Metrics]:
        """What the whole step's loss says about each micro-batch's features and share of the scalars; its metrics."""
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        inputs = {"image": joined.pop("image"), "text": joined.pop("text"), **self._scalars()}
        inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
        loss, metrics = self._loss(inputs, joined)
        grads = torch.autograd.grad(loss, list(inputs.values()))
        sizes = [len(part["image"]) for part in parts]
        cut = [torch.split(grad, sizes) if grad.ndim else [grad / len(sizes)] * len(sizes) for grad in grads]
        shares = [dict(zip(inputs, share, strict=True)) for share in zip(*cut, strict=True)]
        return shares, {**metrics, "loss": loss.detach()}

    def _loss(self, inputs: Metrics, taught: Metrics) -> tuple[Tensor, Metrics]:
        teacher = None
        if self.teacher:
            scale: Any = self.teacher.module.logit_scale
            teacher = Features(taught["teacher_image"], taught["teacher_text"], scale.detach().exp().reshape(()))
        loss, metrics = self.loss.of(Features(**inputs, teacher=teacher), self.loss_chunk_size)
        return loss, {
            **metrics,
            "logit_scale": inputs["logit_scale"].detach(),
            **spread(inputs["image"], inputs["text"]),
        }


def _encode(clip: ClipModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features of unit length, (n, D) each."""
    towers: Any = clip.module
    image: Tensor = towers.encode_image(clip.pixels(batch["images"]), normalize=True)
    return image, towers.encode_text(batch["tokens"], normalize=True)
