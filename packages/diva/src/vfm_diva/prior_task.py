"""The training of a prior: a diffusion model that is told an embedding in CLIP's joint space, of picture or text."""

# B batch, D width of the joint space, S and G sides of the images, L context length

from __future__ import annotations

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
from vfm_diva.space import unit_range
from vfm_diva.told import Told

MEASURED_BATCHES, MEASURE_BATCH_SIZE = 8, 256


class PriorTask(Task):
    """Denoises pictures, told the embedding of a caption or of the picture itself.

    Args:
        clip: gives the embeddings, frozen.
        generator: what is trained: its UNet and its condition map.
        condition_noise: of the embedding, relative to its root mean square: what the prior sees in training must cover
            what it meets when the tower moves.

    Source: Ramesh et al. 2022, un-CLIP (arXiv:2204.06125), section 2.1, for images as conditions.
    """

    def __init__(self, clip: ClipModel, generator: Generator, *, condition_noise: float = 0.4) -> None:
        super().__init__()
        assert generator.condition_map is not None
        self.clip, self.generator, self.condition_noise = clip, generator, condition_noise
        self.denoiser, self.condition_map = generator.denoiser, generator.condition_map
        self.frozen_clip, self.space = Frozen(clip.module), Frozen(generator.space)
        self.condition_map.remember_space(clip)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean denoising error of a batch of `MakeConditioned`."""
        noise = self.condition_noise * batch["condition_noise"]
        told = self.condition_map(self.embeds(batch), noise=noise, is_empty=batch["is_empty"])
        error = self.errors(batch, told)
        return error.mean(), {}

    def errors(self, batch: Batch, told: Told) -> Tensor:
        """The error of each sample at its first time, (B,)."""
        x0 = self.space(batch["pictures"])
        error: Tensor = self.denoiser(x0, batch["noise"][:, 0], batch["times"][:, 0], told)
        return error

    @torch.no_grad()
    def embeds(self, batch: Batch) -> Tensor:
        """The condition of each sample on the texts' side of the joint space, (B, D): its caption's, or its own."""
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
        """The generator in diffusers' layout, the condition map beside it."""
        return self.generator.save(directory)


@torch.no_grad()
def measure(task: PriorTask, data: TrainingData, *, with_gap: bool = True) -> None:
    """Sets what is measured on some samples before training: the space's scale and the modality gap.

    The gap is the mean text embedding minus the mean image embedding.

    Args:
        task: where it will be trained; changed in place.
        data: makes samples by `MakeConditioned`.
        with_gap: False leaves the gap at 0, for a prior that is told images alone.
    """
    squares, gaps = [], []
    for batch in excerpt(data, task, num_batches=MEASURED_BATCHES, batch_size=MEASURE_BATCH_SIZE):
        squares.append(unit_range(batch["pictures"]).square().mean())
        if with_gap:
            texts, images = task.text_embeds(batch["tokens"]), task.image_embeds(batch["images"])
            gaps.append(texts.mean(dim=0) - images.mean(dim=0))
    task.generator.space.adapt(torch.stack(squares).mean().sqrt().item())
    if with_gap:
        task.condition_map.gap.copy_(torch.stack(gaps).mean(dim=0))
