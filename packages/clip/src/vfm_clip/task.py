"""Contrastive training of a CLIP model as a task for `vfm.train.fit`. Micro-batches give the batch's gradient."""

# n samples of this process, D width of the joint space

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import Batch
from vfm.models import ClipModel, encode_text, save_clip, used_length
from vfm.plugin import ClipCheckpoint, UserError
from vfm.train import Call, Frozen, Metrics, Task, TrainedTower, normalized_weights, repeated_forward
from vfm_clip.data import ClipInputs
from vfm_clip.feature_metrics import feature_spread, pair_similarity, repeated_fractions, token_hash
from vfm_clip.loss_parts import ClipLoss, InfoNce
from vfm_clip.losses import ClipFeatures
from vfm_clip.towers import patch_dropouts
from vfm_kernels import Kernels, accelerated, padded

__all__ = ["ClipInputs", "ClipTask"]

# Learned embedding tables (positions and token types) in Hugging Face's text towers.
TABLES = ("position_embeddings", "token_type_embeddings", "relative_attention_bias", "embed_positions")


class ClipTask(Task[ClipInputs]):
    """Contrastive loss over the batch of all processes.

    The task trains the weights that require a gradient when it is created (`vfm.train.prepare_towers`).

    Args:
        clip: The model. Its `logit_scale` parameter is the logarithm of the inverse temperature.
        loss: Configuration of the loss. A loss with a `logit_bias` needs a model with that parameter.
        teacher: Frozen model that the loss learns from.
        logit_scale_max: Upper bound of the inverse temperature, whose lower bound is 1 (the paper: 100).
        train_logit_scale: False keeps the initial temperature.
        towers: Learning rates of the towers by layer.
        unmasked_from: First step without patch dropout.

    Raises:
        UserError: If the model has more than two towers (CoCa's captioner would not be trained).

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020). Accumulation: Gao et al. 2021 (arXiv:2101.06983).
    """

    def __init__(
        self,
        clip: ClipModel,
        *,
        loss: ClipLoss = InfoNce(),  # noqa: B008 (frozen)
        teacher: ClipModel | None = None,
        logit_scale_max: float = 100.0,
        train_logit_scale: bool = True,
        towers: Sequence[TrainedTower] = (),
        unmasked_from: int | None = None,
    ) -> None:
        super().__init__()
        if "multimodal_cfg" in clip.config:
            raise UserError(f"{clip.name} also writes captions (CoCa), which a contrastive loss would not train")
        self.model = clip
        self.module = clip.module
        self.loss: nn.Module = loss.build()
        self.uses_bias = loss.logit_bias is not None
        self.teacher = teacher
        self.frozen_teacher = Frozen(teacher.module) if teacher else None
        self.max_log_scale = math.log(logit_scale_max)
        self.towers = towers
        self.unmasked_from = unmasked_from
        self.log_scale.requires_grad_(train_logit_scale)
        bias = self.logit_bias
        if bias is not None:
            bias.requires_grad_(self.uses_bias)  # DDP would wait for the gradient of an unused bias

    @property
    def log_scale(self) -> nn.Parameter:
        """Logarithm of the inverse temperature, the learned parameter."""
        parameter = self.module.logit_scale
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, a scalar."""
        return self.log_scale.exp().reshape(())

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """SigLIP's bias, if the model has one."""
        bias = getattr(self.module, "logit_bias", None)
        if isinstance(bias, nn.Parameter):
            return bias
        return None

    def prepare(self, inputs: ClipInputs) -> ClipInputs:
        """Shorten the tokens to the longest caption, rounded up to a multiple of 8, if only zeros follow.

        Features stay equal up to rounding. Caption hashes stay the same, because zeros add nothing to them.
        """
        tokens = inputs.tokens
        longest = max(used_length(module, tokens) for module in (self.module, *self._frozen_modules()))
        length = -(-longest // 8) * 8
        if length >= tokens.shape[1] or tokens[:, length:].any():
            return inputs
        shorter = tokens[:, :length].contiguous()
        # A slice made contiguous is a new tensor in ordinary memory, from which a copy to the device would wait.
        if tokens.is_pinned():
            shorter = shorter.pin_memory()
        return replace(inputs, tokens=shorter)

    def forward(self, inputs: ClipInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss of this process' samples against all samples of the global batch."""
        image, text = _encode(self.model, inputs)
        return self._loss({"image": image, "text": text, **self._scalars()}, self._targets(inputs))

    def encode(self, inputs: ClipInputs) -> tuple[Tensor, Metrics]:
        """Encode the samples. The first value is 0, or NaN if a feature is not finite.

        The training loop reports the samples of a micro-batch whose value is not finite.
        """
        image, text = _encode(self.model, inputs)
        return (image.sum() + text.sum()) * 0, {"image": image, "text": text, **self._targets(inputs)}

    def replay(self, inputs: ClipInputs, gradients: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Compute a value whose gradients with respect to features and scalars equal `gradients`."""
        image, text = _encode(self.model, inputs)
        values = {"image": image, "text": text, **self._scalars()}
        products = [(values[name] * gradient).sum() for name, gradient in gradients.items()]
        return torch.stack(products).sum(), {}

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[ClipInputs]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Compute the gradient of the whole batch in the memory of a micro-batch.

        All micro-batches are encoded first without gradients. Then the loss of the whole batch is computed, and each
        micro-batch is encoded again to propagate its gradient. Both passes use the same random draws, so that dropout
        and drop path are the same. A teacher encodes each micro-batch once.

        Args:
            call: Runs the task, in the training's precision.
            micro_batches: Parts of this process' batch.
            backward: Computes gradients of a loss.
            reseed: Sets torch's generators for a micro-batch.

        Returns:
            Metrics of the step.
        """
        if len(micro_batches) == 1:
            metrics = super().accumulate(call, micro_batches, backward, reseed)
        else:
            features = []
            with torch.no_grad():
                for index, batch in enumerate(micro_batches):
                    reseed(index)
                    features.append(call(batch, self.encode)[1])
            shares, metrics = self._gradients(features)
            for index, (batch, gradients) in enumerate(zip(micro_batches, shares, strict=True)):
                reseed(index)
                # The first pass was counted already. The utilisation by the model's operations must not count both.
                with repeated_forward():
                    value, _ = call(batch, self.replay, gradients)
                backward(value)
        return {**metrics, **repeated_fractions([batch.inputs for batch in micro_batches])}

    def no_weight_decay(self) -> set[str]:
        """List the weights without weight decay.

        They are the towers' own exemptions, and the embedding tables of Hugging Face text towers. Hugging Face's towers
        exempt nothing themselves. The rule follows open_clip's main branch (4.2.0.dev0, `make_wd_exclude`). Release 3.3
        decays all matrices.
        """
        tables = set()
        for name, _ in self.named_parameters():
            if any(table in name for table in TABLES):
                tables.add(name)
        return super().no_weight_decay() | tables

    def before_step(self, step: int) -> None:
        """End patch dropout at the first unmasked step."""
        if self.unmasked_from is not None and step >= self.unmasked_from:
            for layer in patch_dropouts(self.module):
                # Set anew in each step and not once, so that a resumed run does the same.
                layer.prob = 0.0

    def after_step(self) -> None:
        """Clamp a trained inverse temperature to between 1 and its maximum."""
        if self.log_scale.requires_grad:
            with torch.no_grad():
                # The logarithm is clamped: 0 is an inverse temperature of 1.
                self.log_scale.clamp_(0, self.max_log_scale)

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the towers of the model and of a teacher."""
        return accelerated(choice, self, *self._frozen_modules())

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the model and its teacher."""
        return padded(self, *self._frozen_modules())

    def encoder(self) -> ClipModel:
        """Return the model in training."""
        return self.model

    def export(self, directory: Path) -> ClipCheckpoint:
        """Write the model in open_clip's layout."""
        return save_clip(self.model, directory)

    def _frozen_modules(self) -> list[nn.Module]:
        return [held.module for held in self.frozen()]

    def _scalars(self) -> dict[str, Tensor]:
        """Collect the scalars that turn cosines into logits."""
        scalars = {"logit_scale": self.logit_scale}
        bias = self.logit_bias if self.uses_bias else None
        if bias is not None:
            scalars["logit_bias"] = bias.reshape(())
        return scalars

    @torch.no_grad()
    def _targets(self, inputs: ClipInputs) -> Metrics:
        """Collect the caption hashes and the teacher's features for the loss."""
        targets = {"caption_hash": token_hash(inputs.tokens)}
        if inputs.weight is not None:
            targets["weight"] = inputs.weight
        if not self.teacher:
            return targets
        image, text = _encode(self.teacher, inputs)
        return {**targets, "teacher_image": image, "teacher_text": text}

    def _gradients(self, features: Sequence[Metrics]) -> tuple[list[Metrics], Metrics]:
        """Compute the gradients of the whole step's loss for each micro-batch, and the step's metrics.

        The scalars' gradients are divided evenly, because every micro-batch adds its share to them.
        """
        joined: Metrics = {}
        for name in features[0]:
            joined[name] = torch.cat([part[name] for part in features])
        values = {"image": joined.pop("image"), "text": joined.pop("text"), **self._scalars()}
        for name, value in values.items():
            values[name] = value.detach().requires_grad_()
        loss, metrics = self._loss(values, joined)
        grads = torch.autograd.grad(loss, list(values.values()))
        sizes = [len(part["image"]) for part in features]
        shares: list[Metrics] = [{} for _ in sizes]
        for name, grad in zip(values, grads, strict=True):
            if grad.ndim == 0:
                # Scalars get an equal share in each micro-batch, which add up to their gradient.
                parts: Sequence[Tensor] = [grad / len(sizes)] * len(sizes)
            else:
                parts = torch.split(grad, sizes)
            for share, part in zip(shares, parts, strict=True):
                share[name] = part
        return shares, {**metrics, "loss": loss.detach()}

    def _loss(self, values: Mapping[str, Tensor], targets: Metrics) -> tuple[Tensor, Metrics]:
        teacher = None
        if self.teacher:
            scale: Any = self.teacher.module.logit_scale
            teacher = ClipFeatures(targets["teacher_image"], targets["teacher_text"], scale.detach().exp().reshape(()))
        weight = normalized_weights(targets["weight"]) if "weight" in targets else None
        features = ClipFeatures(**values, teacher=teacher, caption_hash=targets["caption_hash"], weight=weight)
        loss, metrics = self.loss(features)
        scalars = [values[name] for name in self._scalars()]
        loss = loss + 0 * torch.stack(scalars).sum()  # DDP and micro-batches need a gradient of unused scalars, too
        metrics = {**metrics, "logit_scale": values["logit_scale"].detach()}
        if self.is_log_step:
            metrics |= feature_spread(values["image"], values["text"])
            metrics |= pair_similarity(values["image"], values["text"])
        return loss, metrics


def _encode(clip: ClipModel, inputs: ClipInputs) -> tuple[Tensor, Tensor]:
    """Encode images and texts to unit features, (n, D) each."""
    towers: Any = clip.module
    image: Tensor = towers.encode_image(clip.pixels(inputs.images), normalize=True)
    return image, encode_text(clip.module, inputs.tokens, normalize=True)
