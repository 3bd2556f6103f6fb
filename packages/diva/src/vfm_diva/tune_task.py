"""Diffusion feedback: a CLIP's vision tower learns to say what a frozen diffusion model needs to denoise."""

# B batch, D width of the joint space, S side of CLIP's image, G of the generator's, N times, T tokens, W their width

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import ClipCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel, save_clip
from vfm.models.patch_features import cls_and_patch_tokens, feature_width
from vfm.train import Batch, Frozen, Metrics, Task
from vfm_diva.anchor import CosineAnchor, SimilarityAnchor
from vfm_diva.condition import ConditionMap, LinearAdapter
from vfm_diva.denoiser import error_over_times
from vfm_diva.generator import Generator


class TuneTask(Task):
    """Trains the vision tower (and the adapter where there is one) by a generator's denoising error.

    The image is encoded once a step, whatever the number of times. Generator, condition map and text tower stay as
    they are. The tower stays in evaluation mode: it is improved, not trained anew.

    Args:
        clip: the model whose vision tower is trained in place.
        generator: told the image through its condition map, or through a linear adapter.
        anchor: what keeps the tower near its old self; None lets it go.
        with_patches: the projected patch tokens are told besides the embedding.
        linear_adapter: a new linear layer makes the context, trained along.
        image_size: side of the denoised pictures; None is the generator's own.
        seed: draws the adapter's first weights.

    Raises:
        UserError: widths or sizes do not fit, the generator belongs to another CLIP model, or the CLIP model has no
            patch tokens and they are asked for.

    Source: Wang et al. 2024, DIVA (arXiv:2407.20171), whose visual tokens were added to a constant prompt's text
    states; here they replace them, as in un2CLIP (arXiv:2505.24517) and GenHancer (arXiv:2503.19480).
    """

    def __init__(
        self,
        clip: ClipModel,
        generator: Generator,
        anchor: CosineAnchor | SimilarityAnchor | None,
        *,
        with_patches: bool = False,
        linear_adapter: bool = False,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clip, self.generator, self.with_patches = clip, generator, with_patches
        self.image_size = image_size or generator.image_size
        check_fit(clip, generator, with_patches=with_patches, linear_adapter=linear_adapter, image_size=image_size)
        visual = clip.module.visual
        assert isinstance(visual, nn.Module)
        self.visual, self.old_visual = visual, Frozen(deepcopy(visual))
        self.anchor = anchor
        self.denoiser, self.space = Frozen(generator.denoiser), Frozen(generator.space)
        self.adapter = _new_adapter(clip, generator, seed) if linear_adapter else None
        self.condition_map: Frozen[ConditionMap] | None = None
        if not linear_adapter:
            assert generator.condition_map is not None
            generator.condition_map.check_space(clip)
            self.condition_map = Frozen(generator.condition_map)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a batch of `MakeViews`: denoising error plus anchor."""
        pixels = self.clip.pixels(batch["images"])
        tokens = self.tokens(pixels)
        denoising = self.errors(batch, self.context(tokens)).mean()
        metrics = {"denoising_loss": denoising.detach()}
        if self.anchor is None:
            return denoising, metrics
        embeds = F.normalize(tokens[:, 0].float(), dim=-1)
        with torch.no_grad():
            old_embeds = F.normalize(_embed(self.old_visual, pixels).float(), dim=-1)
        anchor = self.anchor(embeds, old_embeds).mean()
        cosine = (embeds * old_embeds).sum(dim=-1).mean()
        return denoising + anchor, metrics | {"anchor_loss": anchor.detach(), "cosine_to_old": cosine.detach()}

    def tokens(self, pixels: Tensor, *, old: bool = False) -> Tensor:
        """What is told of images: the embedding, then the patches' where they are asked for, (B, T, D).

        Args:
            pixels: CLIP's normalised input, (B, 3, S, S).
            old: by the tower as it was before.
        """
        visual = self.old_visual.module if old else self.visual
        if not self.with_patches:
            return _embed(visual, pixels)[:, None]
        embeds, patches = cls_and_patch_tokens(visual, pixels)
        return torch.cat([embeds[:, None], patches], dim=1)

    def context(self, tokens: Tensor) -> Tensor:
        """The generator's context of tokens (B, T, D): (B, K, W)."""
        if self.adapter is not None:
            context: Tensor = self.adapter(tokens)
            return context
        assert self.condition_map is not None
        condition_map = self.condition_map.module
        mapped: Tensor = condition_map(condition_map.toward_text(tokens[:, 0]))
        return mapped

    def errors(self, batch: Batch, context: Tensor) -> Tensor:
        """The denoising error of each image, mean over its times, (B,), told `context`."""
        x0 = self.space(batch["pictures"])
        return error_over_times(self.denoiser.module, x0, batch["noise"], batch["times"], context)

    def train(self, mode: bool = True) -> TuneTask:
        """Keeps evaluation mode, so that dropout and batch statistics are those the tower was judged with."""
        super().train(False)
        return self

    def encoder(self) -> ClipModel:
        """The CLIP model in training."""
        return self.clip

    def export(self, directory: Path) -> ClipCheckpoint:
        """The CLIP model with its tuned tower, in open_clip's layout; nothing of the generator is in it."""
        return save_clip(self.clip, directory)


def check_fit(
    clip: ClipModel,
    generator: Generator,
    *,
    with_patches: bool = False,
    linear_adapter: bool = False,
    image_size: int | None = None,
) -> None:
    """Refuses parts of which a `TuneTask` cannot be made. Looks at no weights, so they may lie on the meta device.

    Raises:
        UserError: widths or sizes do not fit, or the CLIP model has no patch tokens and they are asked for.
    """
    generator.noise_shape_at(image_size or generator.image_size)
    if with_patches:
        feature_width(clip)  # raises where there are no projected patches
    if linear_adapter:
        return
    if generator.condition_map is None:
        raise UserError(
            f"the generator has no condition map from a CLIP's joint space (its context has width "
            f"{generator.condition_width}, the embeddings of {clip.name} {clip.embed_dim}): set adapter: linear"
        )
    generator.condition_map.check_width(clip)


def _embed(visual: Any, pixels: Tensor) -> Tensor:
    """The image embedding before the L2 norm, (B, D); CoCa's tower gives its tokens besides."""
    features = visual(pixels)
    embeds: Tensor = features[0] if isinstance(features, tuple) else features
    return embeds


def _new_adapter(clip: ClipModel, generator: Generator, seed: int) -> LinearAdapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LinearAdapter(clip.embed_dim, generator.condition_width)
