"""The training of a prior: a diffusion model that is told of a picture by CLIP's embeddings, or by a text's states."""

# B batch, D width of the joint space, S and G sides of the images, L context length, W width of the text tower

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfm.artifacts import GeneratorCheckpoint
from vfm.data.loader import TrainingData
from vfm.models.clip import ClipModel
from vfm.train import Batch, Frozen, Metrics, Task
from vfm_diva.excerpt import excerpt
from vfm_diva.generator import Generator
from vfm_diva.space import clean, unit_range
from vfm_diva.text_states import text_states
from vfm_diva.told import Told

MEASURED_BATCHES, MEASURE_BATCH_SIZE = 8, 256


class PriorTask(Task):
    """Denoises pictures, told the embedding of a caption or of the picture itself, or the states of a caption's tokens.

    Args:
        clip: gives embeddings or states, frozen.
        generator: what is trained: its UNet, and its condition map where it has one; without, it is told states.
        condition_noise: of the embedding, relative to its root mean square: what the prior sees in training must cover
            what it meets when the tower moves. States have none.

    Source: Ramesh et al. 2022, un-CLIP (arXiv:2204.06125), section 2.1, for images as conditions; Rombach et al. 2022
    (arXiv:2112.10752) for states.
    """

    def __init__(self, clip: ClipModel, generator: Generator, *, condition_noise: float = 0.4) -> None:
        super().__init__()
        self.clip, self.generator, self.condition_noise = clip, generator, condition_noise
        self.denoiser, self.condition_map = generator.denoiser, generator.condition_map
        self.frozen_clip, self.space = Frozen(clip.module), Frozen(generator.space)
        if self.condition_map:
            self.condition_map.remember_space(clip)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean denoising error of a batch of `MakeConditioned`."""
        if self.condition_map:
            noise = self.condition_noise * batch["condition_noise"]
            told: Told = self.condition_map(self.embeds(batch), noise=noise, is_empty=batch["is_empty"])
        else:
            told = self.of_tokens(batch["tokens"])
            told = told.map(lambda states: states.masked_fill(batch["is_empty"][:, None, None], 0.0))
        return self.errors(batch, told).mean(), {}

    def errors(self, batch: Batch, told: Told) -> Tensor:
        """The error of each sample at its first time, (B,)."""
        x0 = clean(self.space, batch)
        error: Tensor = self.denoiser(x0, batch["noise"][:, 0], batch["times"][:, 0], told)
        return error

    def own(self, batch: Batch) -> Told:
        """What each sample is told when nothing is added or withheld."""
        if not self.condition_map:
            return self.of_tokens(batch["tokens"])
        told: Told = self.condition_map(self.embeds(batch))
        return told

    @torch.no_grad()
    def of_tokens(self, tokens: Tensor) -> Told:
        """What is told of captions, (B, L)."""
        if not self.condition_map:
            return Told(text_states(self.frozen_clip.module, tokens))
        told: Told = self.condition_map(self.text_embeds(tokens))
        return told

    def of_texts(self, texts: Sequence[str]) -> Told:
        """What is told of captions."""
        device = next(self.denoiser.parameters()).device
        return self.of_tokens(self.clip.tokenize(texts).to(device))

    def nothing(self, like: Told) -> Told:
        """What is told where the condition is withheld, for as many samples."""
        return self.condition_map.empty(len(like)) if self.condition_map else like.map(torch.zeros_like)

    @torch.no_grad()
    def embeds(self, batch: Batch) -> Tensor:
        """The condition of each sample on the texts' side of the joint space, (B, D): its caption's, or its own."""
        assert self.condition_map
        is_text = batch["is_text"]
        embeds = torch.zeros(len(is_text), self.clip.embed_dim, device=is_text.device)
        if is_text.any():
            embeds[is_text] = self.text_embeds(batch["tokens"][is_text])
        if not is_text.all():
            embeds[~is_text] = self.condition_map.toward_text(self.image_embeds(batch["images"][~is_text]))
        return embeds

    def text_embeds(self, tokens: Tensor) -> Tensor:
        """Embeddings of captions (B, L), unit length, (B, D)."""
        module: Any = self.frozen_clip.module
        embeds: Tensor = module.encode_text(tokens, normalize=True)
        return embeds.float()

    def image_embeds(self, images: Tensor) -> Tensor:
        """Embeddings of uint8 images (B, 3, S, S), unit length, (B, D)."""
        module: Any = self.frozen_clip.module
        embeds: Tensor = module.encode_image(self.clip.pixels(images), normalize=True)
        return embeds.float()

    def export(self, directory: Path) -> GeneratorCheckpoint:
        """The generator in diffusers' layout, the condition map, where there is one, beside it."""
        return self.generator.save(directory)


@torch.no_grad()
def measure(task: PriorTask, data: TrainingData, *, with_gap: bool = True) -> None:
    """Sets what is measured on some samples before training: the space's scale and the modality gap.

    The gap is the mean text embedding minus the mean image embedding.

    Args:
        task: where it will be trained; changed in place.
        data: makes samples by `MakeConditioned`.
        with_gap: False leaves the gap at 0, for a prior that is told images alone, or states.
    """
    squares, gaps = [], []
    for batch in excerpt(data, task, num_batches=MEASURED_BATCHES, batch_size=MEASURE_BATCH_SIZE):
        if "pictures" in batch:  # else they are latents already, whose scale is the VAE's
            squares.append(unit_range(batch["pictures"]).square().mean())
        if with_gap:
            texts, images = task.text_embeds(batch["tokens"]), task.image_embeds(batch["images"])
            gaps.append(texts.mean(dim=0) - images.mean(dim=0))
    if squares:
        task.generator.space.adapt(torch.stack(squares).mean().sqrt().item())
    if with_gap and task.condition_map:
        task.condition_map.gap.copy_(torch.stack(gaps).mean(dim=0))
