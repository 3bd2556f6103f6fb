"""Diffusion feedback: a CLIP's vision tower learns features that help a frozen diffusion model to denoise the image."""

# B batch, D width of the joint space, S side of CLIP's image, N times

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.data import Batch
from vfm.models import ClipModel, save_clip, tower_blocks, tower_layers
from vfm.plugin import AllWeights, ClipCheckpoint
from vfm.train import Call, Frozen, Metrics, Task, TrainedTower, freeze_unused, prepare_towers
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import error_over_times
from vfm_diva.generator.generator import Generator
from vfm_diva.generator.inputs import ImageInputs, TuneInputs, clean_targets
from vfm_diva.parts.loss_parts import ViewLoss
from vfm_diva.parts.parts import TrainedAdapter
from vfm_diva.tune.condition import ImageCondition, ImageFeatures
from vfm_diva.tune.conditioner import Conditioner
from vfm_diva.tune.divergence import CHECK_EVERY, DivergenceWatch
from vfm_diva.tune.loss import Denoised, ImageLoss
from vfm_diva.tune.stages import Feedback
from vfm_kernels import Kernels, accelerated, padded

DEFAULTS = Feedback()


class TuneTask(Task[TuneInputs]):
    """Trains the vision tower, and the adapter if there is one, by a generator's denoising error.

    The image is encoded once per step, for any number of times. Generator, condition map and text tower are frozen. The
    tower stays in evaluation mode: it is improved, not trained from scratch.

    Args:
        clip: Model whose vision tower is trained in place.
        generator: Frozen diffusion model.
        feedback: Settings of the condition, the trained weights and the anchor.
        prompt: Text states of the prompt (`encode_prompt`), if they are needed.
        seed: Seed of the initial weights of adapter and LoRA.

    Raises:
        UserError: If widths or sizes do not fit, the generator belongs to another CLIP model, or the CLIP model lacks
            the patch tokens that the condition needs.

    Source: Wang et al. 2024, DIVA (arXiv:2407.20171).
    """

    def __init__(
        self,
        clip: ClipModel,
        generator: Generator,
        feedback: Feedback = DEFAULTS,
        *,
        prompt: Conditioning | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.generator = generator
        self.control = feedback.control
        self.image_size = feedback.image_size or generator.image_size
        self.visual = cast("nn.Module", clip.module.visual)
        self.conditioner = Conditioner(clip, generator, feedback, prompt=prompt, seed=seed)
        self.condition: ImageCondition = feedback.condition.build(clip)
        self.old_visual = Frozen(deepcopy(self.visual), steps_only=True)  # before the update changes its modules
        self.denoiser = Frozen(generator.denoiser, steps_only=True)
        self.space = Frozen(generator.space, steps_only=True)
        self.anchored = feedback.anchor.compares
        self.anchor: Callable[[Any, Any], Tensor] | None = None
        if self.anchored != "nothing":
            self.anchor = feedback.anchor.build(clip)
        self.loss: ImageLoss = feedback.loss.build()
        self.needs_view = isinstance(feedback.loss, ViewLoss)
        image: Any = {"tower": "image"}
        layers = partial(tower_layers, **image)
        blocks = partial(tower_blocks, **image)
        self.tower = TrainedTower(feedback.trained, clip.module, layers, blocks)
        self.merge = prepare_towers([self.tower], seed=seed)
        freeze_unused(self, self._probe)
        self.adapter_lr_scale = 1.0
        self._adapter_params: list[nn.Parameter] = []  # trained in the first training
        if isinstance(feedback.adapter, TrainedAdapter):
            self.adapter_lr_scale = feedback.adapter.lr_scale
            self._adapter_params = [param for param in self.conditioner.parameters() if param.requires_grad]
            _set_trained(self._adapter_params, feedback.adapter.joint)
        self.watch = DivergenceWatch(feedback.max_loss_rise) if feedback.max_loss_rise else None
        self._steps = 0

    def forward(self, inputs: TuneInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss on the denoised images plus the anchor's loss."""
        features = self.features(inputs)
        conditioning = self.conditioner(features)
        if self.control == "shuffled":
            conditioning = conditioning.mismatched(len(conditioning) // len(inputs.images))
        view = self.conditioner(self.features_of(inputs.views, inputs)) if self.needs_view else None
        x0 = clean_targets(self.space, inputs)
        losses, errors = self.loss(self.denoiser.module, Denoised(x0, inputs.noise, inputs.times, conditioning, view))
        denoising = losses.mean()
        metrics = {"denoising_loss": errors.mean().detach()}
        if self.needs_view:
            metrics["contrastive_loss"] = denoising.detach()
        if self.control == "anchor_only":  # without the graph of the denoising error
            denoising = torch.zeros_like(denoising)
        if self.anchor is None:
            return denoising, metrics
        if self.anchored == "weights":
            loss = self.anchor(self.visual, self.old_visual.module)
            return denoising + loss, metrics | {"anchor_loss": loss.detach()}
        embeds = F.normalize(features.embeds.float(), dim=-1)
        with torch.no_grad():
            old_embeds = F.normalize(self.features(inputs, old=True).embeds.float(), dim=-1)
        loss = self.anchor(embeds, old_embeds).mean()
        cosine = (embeds * old_embeds).sum(dim=-1).mean()
        return denoising + loss, metrics | {"anchor_loss": loss.detach(), "cosine_to_old": cosine.detach()}

    def features(self, inputs: TuneInputs, *, old: bool = False) -> ImageFeatures:
        """Compute the features of the images by the tower, or by the tower in its initial state."""
        return self.features_of(inputs.images, inputs, old=old)

    def features_of(self, images: Tensor | None, inputs: TuneInputs, *, old: bool = False) -> ImageFeatures:
        """Compute the features of images.

        Args:
            images: uint8 (B, 3, S, S).
            inputs: Inputs with the random draws.
            old: As in `features`.
        """
        assert images is not None
        visual = self.old_visual.module if old else self.visual
        return self.condition(visual, self.clip.pixels(images), inputs.patch_draws)

    def conditioning(self, inputs: TuneInputs, *, old: bool = False) -> Conditioning:
        """Compute the conditioning on the images by the tower, or by the tower in its initial state."""
        conditioning: Conditioning = self.conditioner(self.features(inputs, old=old))
        return conditioning

    def errors(self, inputs: ImageInputs, conditioning: Conditioning) -> Tensor:
        """Compute the denoising error of each image, averaged over its times, (B,)."""
        x0 = clean_targets(self.space, inputs)
        return error_over_times(self.denoiser.module, x0, inputs.noise, inputs.times, conditioning)

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[TuneInputs]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Compute gradients as `Task.accumulate` does, and record the loss to detect a divergence."""
        metrics = super().accumulate(call, micro_batches, backward, reseed)
        if self.watch:
            self.watch.add(metrics["denoising_loss"])
        return metrics

    def after_step(self) -> None:
        """Stop the training if its loss keeps rising."""
        self._steps += 1
        # Reading the loss synchronises with the device, which costs nothing on the CPU only.
        if self.watch and (self.watch.recent.device.type == "cpu" or self._steps % CHECK_EVERY == 0):
            self.watch.check()

    @contextmanager
    def adapter_only(self) -> Iterator[None]:
        """Train only the adapter within the context, at the scheduled rate, with CLIP frozen."""
        # Remembered, since only weights that were trained before must be trained after.
        tower = [param for param in self.visual.parameters() if param.requires_grad]
        joint = [param.requires_grad for param in self._adapter_params]
        scale = self.adapter_lr_scale
        self.adapter_lr_scale = 1.0
        _set_trained(tower, False)
        _set_trained(self._adapter_params, True)
        try:
            yield
        finally:
            _set_trained(tower, True)
            for param, trained in zip(self._adapter_params, joint, strict=True):
                param.requires_grad_(trained)
            self.adapter_lr_scale = scale
            if self.watch:  # the loss of the first training is not a baseline for the second
                self.watch.reset()

    @property
    def towers(self) -> Sequence[TrainedTower]:  # type: ignore[override]
        """Vision tower, and the adapter as a separate layer."""
        rate = AllWeights(lr_scale=self.adapter_lr_scale)
        return self.tower, TrainedTower(rate, self.conditioner, _one_layer, nn.Module.children)

    def train(self, mode: bool = True) -> TuneTask:
        """Keep evaluation mode, so that batch statistics are as in the evaluated tower. Only LoRA's dropout changes."""
        super().train(False)
        for name, part in self.visual.named_modules():
            if name.endswith("lora_dropout"):
                part.train(mode)
        return self

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the CLIP model and in its initial state, so that the two stay comparable."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """Store wider weights in the CLIP model and in its initial state."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> ClipModel:
        """Return the CLIP model in training."""
        return self.clip

    def export(self, directory: Path) -> ClipCheckpoint:
        """Write the CLIP model with its tuned tower, in open_clip's layout. Nothing of the generator is in it.

        LoRA's updates are merged, so the task cannot be trained further.
        """
        self.merge()
        return save_clip(self.clip, directory)

    def _probe(self) -> list[Tensor]:
        """Collect the tensors that the loss depends on, for a black image."""
        size = self.clip.preprocess.image_size
        device = self.clip.device
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
        draws = torch.zeros(1, self.condition.num_draws, device=device)
        features = self.condition(self.visual, self.clip.pixels(black), draws)
        if self.control == "anchor_only":
            return [features.embeds]
        conditioning: Conditioning = self.conditioner(features)
        tensors = [conditioning.tokens]
        if conditioning.pooled is not None:
            tensors.append(conditioning.pooled)
        if self.anchored == "embeddings":
            tensors.append(features.embeds)
        return tensors


def _one_layer(module: nn.Module) -> list[list[str]]:
    return [[name for name, _ in module.named_parameters()]]


def _set_trained(params: Sequence[nn.Parameter], trained: bool) -> None:
    for param in params:
        param.requires_grad_(trained)
