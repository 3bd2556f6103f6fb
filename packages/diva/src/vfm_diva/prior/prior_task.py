"""Train a diffusion model conditioned on CLIP's embeddings, or on a caption's token states."""

# B batch, D width of the joint space, S side of CLIP's images, L context length, W width of the text tower

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import TrainingData
from vfm.models import ClipModel
from vfm.plugin import GeneratorCheckpoint, UserError
from vfm.train import Frozen, Metrics, Task
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import Generator
from vfm_diva.generator.inputs import ImageInputs, PriorInputs, clean_targets, sample_batches
from vfm_diva.generator.space import unit_range

MEASURED_BATCHES = 8
MEASURE_BATCH_SIZE = 256


class PriorTask(Task[PriorInputs]):
    """Denoises images, conditioned on the embedding of a caption or of the image, or on a caption's token states.

    Args:
        clip: Frozen model that computes embeddings or states.
        generator: Generator whose network and condition map are trained. Without a map the condition is states.
        condition_noise: Noise on the embedding, relative to its root mean square: training must cover the embeddings
            that the prior meets when the tower changes. States have no noise.

    Sources: Ramesh et al. 2022, un-CLIP (arXiv:2204.06125), section 2.1, for images as conditions, and Rombach et al.
    2022 (arXiv:2112.10752) for states.
    """

    def __init__(self, clip: ClipModel, generator: Generator, *, condition_noise: float = 0.4) -> None:
        super().__init__()
        self.clip = clip
        self.generator = generator
        self.condition_noise = condition_noise
        self.denoiser = generator.denoiser
        self.condition_map = generator.condition_map
        self.frozen_clip = Frozen(clip.module)
        self.space = Frozen(generator.space)
        if self.condition_map:
            self.condition_map.record_space(clip)

    def forward(self, inputs: PriorInputs) -> tuple[Tensor, Metrics]:
        """Compute the mean denoising error."""
        if self.condition_map:
            noise = self.condition_noise * inputs.condition_noise
            conditioning: Conditioning = self.condition_map(self.embeds(inputs), noise=noise, is_empty=inputs.is_empty)
        else:
            conditioning = self.condition_on_tokens(inputs.tokens)
            # Without a map, zeros are the empty condition.
            conditioning = conditioning.map(lambda states: states.masked_fill(inputs.is_empty[:, None, None], 0.0))
        return self.errors(inputs, conditioning).mean(), {}

    def errors(self, inputs: ImageInputs, conditioning: Conditioning) -> Tensor:
        """Compute the error of each sample at its first time, (B,)."""
        x0 = clean_targets(self.space, inputs)
        error: Tensor = self.denoiser(x0, inputs.noise[:, 0], inputs.times[:, 0], conditioning)
        return error

    def condition(self, inputs: PriorInputs) -> Conditioning:
        """Compute each sample's conditioning, without noise or dropout."""
        if not self.condition_map:
            return self.condition_on_tokens(inputs.tokens)
        conditioning: Conditioning = self.condition_map(self.embeds(inputs))
        return conditioning

    @torch.no_grad()
    def condition_on_tokens(self, tokens: Tensor) -> Conditioning:
        """Compute the conditioning on captions, (B, L)."""
        if not self.condition_map:
            return Conditioning(text_states(self.frozen_clip.module, tokens))
        conditioning: Conditioning = self.condition_map(self.text_embeds(tokens))
        return conditioning

    def condition_on_texts(self, texts: Sequence[str]) -> Conditioning:
        """Compute the conditioning on captions."""
        device = next(self.denoiser.parameters()).device
        return self.condition_on_tokens(self.clip.tokenize(texts).to(device))

    @torch.no_grad()
    def condition_on_images(self, images: Tensor) -> Conditioning:
        """Compute the conditioning on uint8 images (B, 3, S, S) for CLIP. This needs a condition map."""
        assert self.condition_map
        return self.condition_map.from_images(self.image_embeds(images))

    def empty(self, like: Conditioning) -> Conditioning:
        """Compute the conditioning of as many samples without a condition."""
        return self.condition_map.empty(len(like)) if self.condition_map else like.map(torch.zeros_like)

    @torch.no_grad()
    def embeds(self, inputs: PriorInputs) -> Tensor:
        """Compute the text-like embedding that conditions each sample, (B, D).

        It comes from the sample's caption or from its image.
        """
        assert self.condition_map
        is_text = inputs.is_text
        embeds = torch.zeros(len(is_text), self.clip.embed_dim, device=is_text.device)
        if is_text.any():
            embeds[is_text] = self.text_embeds(inputs.tokens[is_text])
        if not is_text.all():
            embeds[~is_text] = self.condition_map.toward_text(self.image_embeds(inputs.images[~is_text]))
        return embeds

    def text_embeds(self, tokens: Tensor) -> Tensor:
        """Encode captions (B, L) to embeddings of unit length, (B, D)."""
        module: Any = self.frozen_clip.module
        embeds: Tensor = module.encode_text(tokens, normalize=True)
        return embeds.float()

    def image_embeds(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, 3, S, S) to embeddings of unit length, (B, D)."""
        module: Any = self.frozen_clip.module
        embeds: Tensor = module.encode_image(self.clip.pixels(images), normalize=True)
        return embeds.float()

    def export(self, directory: Path) -> GeneratorCheckpoint:
        """Write the generator in diffusers' layout, with the condition map if there is one."""
        return self.generator.save(directory)


@torch.no_grad()
def measure_data(task: PriorTask, data: TrainingData[PriorInputs], *, with_gap: bool = True) -> None:
    """Measure samples before training, and set the space's scale and the modality gap.

    The gap is the mean text embedding minus the mean image embedding.

    Args:
        task: Task on the device of the training run. It is changed in place.
        data: Data of the training run.
        with_gap: False leaves the gap at 0, for a prior conditioned on images only or on states.
    """
    squares = []
    gaps = []
    device = next(task.parameters()).device
    for batch in sample_batches(data, device, num_batches=MEASURED_BATCHES, batch_size=MEASURE_BATCH_SIZE):
        inputs = batch.inputs
        if inputs.target_images is not None:  # cached latents have the VAE's scale already
            squares.append(unit_range(inputs.target_images).square().mean())
        if with_gap:
            texts = task.text_embeds(inputs.tokens)
            images = task.image_embeds(inputs.images)
            gaps.append(texts.mean(dim=0) - images.mean(dim=0))
    if squares:
        task.generator.space.set_data_rms(torch.stack(squares).mean().sqrt().item())
    if with_gap and task.condition_map:
        task.condition_map.gap.copy_(torch.stack(gaps).mean(dim=0))


def states_width(clip: ClipModel) -> int:
    """Read W, the width of `text_states`. No weights are read.

    Raises:
        UserError: If the text tower is not open_clip's own.
    """
    tower: Any = getattr(clip.module, "text", clip.module)
    if not hasattr(tower, "ln_final") or not hasattr(clip.module, "forward_intermediates"):
        raise UserError(
            f"{clip.name}: text_states needs one of open_clip's own text towers, got {type(tower).__name__}"
        )
    return int(tower.ln_final.weight.shape[0])


def text_states(module: nn.Module, tokens: Tensor) -> Tensor:
    """Compute the states of captions (B, L) after the last norm, float32 (B, L, W). Padding has states too."""
    clip: Any = module
    features = clip.forward_intermediates(
        text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
    )
    states: Tensor = features["text_intermediates"][-1]
    return states.float()
