"""Diffusion feedback: a CLIP's vision tower learns to say what a frozen diffusion model needs to denoise."""

# B batch, D width of the joint space, S side of CLIP's image, N times

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import ClipCheckpoint
from vfm.models.clip import ClipModel, save_clip
from vfm.models.patch_features import vision_tower
from vfm.train import Batch, Frozen, Metrics, ParamGroup, Task
from vfm.train.task import Call
from vfm_diva.adapter import NoAdapter
from vfm_diva.anchor import L2SpAnchor, NoAnchor
from vfm_diva.conditioner import Conditioner
from vfm_diva.denoiser import error_over_times
from vfm_diva.divergence import LOOK_EVERY, DivergenceWatch
from vfm_diva.feedback import Feedback
from vfm_diva.generator import Generator
from vfm_diva.low_rank import LowRank
from vfm_diva.reach import freeze_unreached
from vfm_diva.space import clean
from vfm_diva.told import Told
from vfm_diva.update import LastBlocks, Lora
from vfm_kernels import Kernels, accelerated, padded

DEFAULTS = Feedback()


class TuneTask(Task):
    """Trains the vision tower (and the adapter where there is one) by a generator's denoising error.

    The image is encoded once a step, whatever the number of times. Generator, condition map and text tower stay as
    they are. The tower stays in evaluation mode: it is improved, not trained anew.

    Args:
        clip: the model whose vision tower is trained in place.
        generator: told the image, frozen.
        how: what it is told, what is trained, and what holds it.
        prompt: text states of `how.prompt` (`encode_prompt`), where they are needed.
        seed: draws the first weights of adapter and LoRA.

    Raises:
        UserError: widths or sizes do not fit, the generator belongs to another CLIP model, or the CLIP model has no
            patch tokens and they are asked for.

    Source: Wang et al. 2024, DIVA (arXiv:2407.20171).
    """

    def __init__(
        self,
        clip: ClipModel,
        generator: Generator,
        how: Feedback = DEFAULTS,
        *,
        prompt: Told | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clip, self.generator, self.condition, self.anchor = clip, generator, how.condition, how.anchor
        self.control = how.control
        self.image_size = how.image_size or generator.image_size
        self.visual = cast("nn.Module", clip.module.visual)
        self.conditioner = Conditioner(clip, generator, how, prompt=prompt, seed=seed)
        self.old_visual = Frozen(deepcopy(self.visual))
        self.denoiser, self.space = Frozen(generator.denoiser), Frozen(generator.space)
        self.anchor_of_embeds = None if isinstance(how.anchor, NoAnchor | L2SpAnchor) else how.anchor.of_embeds(clip)
        update, start, self.low_rank = how.update, None, None
        if isinstance(update, Lora):
            self.low_rank = LowRank(self.visual, rank=update.rank, alpha=update.alpha, seed=seed)
        elif isinstance(update, LastBlocks):
            start = vision_tower(self.visual).blocks[-update.blocks]
        freeze_unreached(self, self._probe, start=start)
        self.adapter_lr_scale = 1.0
        self._first: list[nn.Parameter] = []  # what a first stage trains
        if not isinstance(how.adapter, NoAdapter):
            self.adapter_lr_scale = how.adapter.lr_scale
            self._first = [param for param in self.conditioner.parameters() if param.requires_grad]
            _train(self._first, how.adapter.joint)
        self.watch = DivergenceWatch(how.max_loss_rise) if how.max_loss_rise else None
        self._steps = 0

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a batch of `MakeViews` (`MakeDrawn` where patches are drawn): denoising error plus anchor."""
        pixels = self.clip.pixels(batch["images"])
        seen = self.condition.see(self.visual, pixels, batch.get("patch_draws"))
        told = self.conditioner(seen)
        denoising = self.errors(batch, told.of_another() if self.control == "shuffled" else told).mean()
        metrics = {"denoising_loss": denoising.detach()}
        if self.control == "anchor_only":
            denoising = torch.zeros_like(denoising)
        if isinstance(self.anchor, L2SpAnchor):
            loss = self.anchor.of_weights(self.visual, self.old_visual.module)
            return denoising + loss, metrics | {"anchor_loss": loss.detach()}
        if self.anchor_of_embeds is None:
            return denoising, metrics
        embeds = F.normalize(seen.embeds.float(), dim=-1)
        with torch.no_grad():
            old = self.condition.see(self.old_visual.module, pixels, batch.get("patch_draws"))
            old_embeds = F.normalize(old.embeds.float(), dim=-1)
        loss = self.anchor_of_embeds(embeds, old_embeds).mean()
        cosine = (embeds * old_embeds).sum(dim=-1).mean()
        return denoising + loss, metrics | {"anchor_loss": loss.detach(), "cosine_to_old": cosine.detach()}

    def told(self, batch: Batch, *, old: bool = False) -> Told:
        """What the generator is told of a batch's images, by the tower as it is or as it was before."""
        visual = self.old_visual.module if old else self.visual
        seen = self.condition.see(visual, self.clip.pixels(batch["images"]), batch.get("patch_draws"))
        told: Told = self.conditioner(seen)
        return told

    def errors(self, batch: Batch, told: Told) -> Tensor:
        """The denoising error of each image, mean over its times, (B,)."""
        x0 = clean(self.space, batch)
        return error_over_times(self.denoiser.module, x0, batch["noise"], batch["times"], told)

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """The mean over samples; the watch takes note."""
        metrics = super().accumulate(call, micro_batches, backward, reseed)
        if self.watch:
            self.watch.add(metrics["denoising_loss"])
        return metrics

    def after_step(self) -> None:
        """Stops where the loss rises for good."""
        self._steps += 1
        if self.watch and (self.watch.recent.device.type == "cpu" or self._steps % LOOK_EVERY == 0):
            self.watch.check()

    @contextmanager
    def adapter_alone(self) -> Iterator[None]:
        """Inside, the adapter alone is trained, at the scheduled rate; CLIP is frozen."""
        tower = [param for param in self.visual.parameters() if param.requires_grad]
        joint = [param.requires_grad for param in self._first]
        scale, self.adapter_lr_scale = self.adapter_lr_scale, 1.0
        _train(tower, False)
        _train(self._first, True)
        try:
            yield
        finally:
            _train(tower, True)
            for param, trained in zip(self._first, joint, strict=True):
                param.requires_grad_(trained)
            self.adapter_lr_scale = scale
            if self.watch:
                self.watch.forget()

    def parameter_groups(self) -> list[ParamGroup]:
        """The tower's and the adapter's, each with its rate."""
        own = {id(param) for param in self.conditioner.parameters()}
        groups = []
        for group in super().parameter_groups():
            for of_adapter in (False, True):
                params = [param for param in group.params if (id(param) in own) == of_adapter]
                scale = self.adapter_lr_scale if of_adapter else 1.0
                groups.append(ParamGroup(params, scale, group.weight_decay))
        return [group for group in groups if group.params]

    def train(self, mode: bool = True) -> TuneTask:
        """Keeps evaluation mode, so that dropout and batch statistics are those the tower was judged with."""
        super().train(False)
        return self

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """In the CLIP model, and in what it was at the start, so that the two stay comparable."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """Alike in the CLIP model and in what it was at the start."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> ClipModel:
        """The CLIP model in training."""
        return self.clip

    def export(self, directory: Path) -> ClipCheckpoint:
        """The CLIP model with its tuned tower, in open_clip's layout; nothing of the generator is in it.

        LoRA's changes are merged, so the training is over.
        """
        if self.low_rank:
            self.low_rank.merge()
            self.low_rank = None
        return save_clip(self.clip, directory)

    def _probe(self) -> list[Tensor]:
        """What the loss is made of, of one black image."""
        size = self.clip.preprocess.image_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.clip.device)
        draws = torch.zeros(1, self.condition.num_draws(self.clip), device=self.clip.device)
        seen = self.condition.see(self.visual, self.clip.pixels(black), draws)
        if self.control == "anchor_only":
            return [seen.embeds]
        told = self.conditioner(seen)
        anchored = [seen.embeds] if self.anchor_of_embeds else []
        return [told.tokens, *([] if told.pooled is None else [told.pooled]), *anchored]


def _train(params: Sequence[nn.Parameter], trained: bool) -> None:
    for param in params:
        param.requires_grad_(trained)
