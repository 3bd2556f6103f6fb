"""Convert a tower's features of images to the conditioning of a generator, and check that the parts of a tuning fit."""

# B batch, D width of the joint space, W width of the context, P of the vector

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm.models import ClipModel, vision_tower
from vfm.plugin import LastBlocks, UserError
from vfm.train import Frozen
from vfm_diva.generator.condition_map import ConditionMap
from vfm_diva.generator.conditioning import Conditioning, combine_with_prompt
from vfm_diva.generator.generator import Generator
from vfm_diva.generator.space import check_sampling
from vfm_diva.parts.parts import Cls, Embedding, NoAdapter
from vfm_diva.tune.condition import ImageCondition, ImageFeatures
from vfm_diva.tune.stages import Feedback


class Conditioner(nn.Module):
    """Conditions a generator on images.

    The condition passes through an adapter or the generator's own map, or its tokens are used unchanged.

    Args:
        clip: CLIP model of the tower.
        generator: Diffusion model to condition.
        feedback: Settings of condition, adapter and prompt.
        prompt: Text states of the prompt (`encode_prompt`), if `needs_prompt`.
        seed: Seed of the adapter's initial weights.

    Raises:
        UserError: If the parts do not fit, as for `check_feedback`, the generator's map belongs to another CLIP model,
            or the prompt is missing.
    """

    prompt_tokens: Tensor | None
    prompt_pooled: Tensor | None

    def __init__(
        self,
        clip: ClipModel,
        generator: Generator,
        feedback: Feedback,
        *,
        prompt: Conditioning | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        condition = check_feedback(clip, generator, feedback)
        if prompt is None and needs_prompt(clip, generator, feedback):
            raise UserError(f"the generator needs the text states of the prompt {feedback.prompt.text!r}, got none")
        self.combine = feedback.prompt.combine
        self.is_class = takes_class(clip, generator)
        self.context_width = generator.inputs.context_width
        self.vector_width = generator.inputs.pooled_width
        self.condition_map: Frozen[ConditionMap] | None = None
        self.adapter: nn.Module | None = None
        if not isinstance(feedback.adapter, NoAdapter):
            self.adapter = feedback.adapter.build(
                generator.inputs, width=condition.width, embed_dim=clip.embed_dim, seed=seed
            )
        elif generator.condition_map:
            generator.condition_map.check_space(clip)
            self.condition_map = Frozen(generator.condition_map)
        # Not persistent: checkpoints need no text states, which the generator's folder gives.
        self.register_buffer("prompt_tokens", prompt.tokens if prompt else None, persistent=False)
        self.register_buffer("prompt_pooled", prompt.pooled if prompt else None, persistent=False)

    @property
    def prompt(self) -> Conditioning | None:
        """Constant prompt, on the module's device."""
        return None if self.prompt_tokens is None else Conditioning(self.prompt_tokens, self.prompt_pooled)

    def forward(self, features: ImageFeatures) -> Conditioning:
        """Compute the conditioning on images, combined with the prompt."""
        return combine_with_prompt(self.from_images(features), self.prompt, self.combine)

    def from_images(self, features: ImageFeatures) -> Conditioning:
        """Compute the conditioning on images without the prompt."""
        if self.adapter is not None:
            conditioning: Conditioning = self.adapter(features)
            return conditioning
        embeds = features.embeds
        if self.condition_map:
            return self.condition_map.module.from_images(embeds)
        if self.is_class:
            # Kandinsky takes the embedding, and Stable unCLIP also the code of its level of noise.
            vector = embeds if self.vector_width == embeds.shape[1] else class_vector(embeds)
            return Conditioning(embeds.new_zeros(len(embeds), 0, self.context_width), vector)
        return Conditioning(features.tokens)


def class_vector(embeds: Tensor) -> Tensor:
    """Compute Stable unCLIP's class embedding, (B, 2 D), of image embeddings (B, D) without noise.

    The second half is the sinusoidal code of noise level 0: ones, then zeros. The model's mean and deviation of
    embeddings are used for the noise only, so they are not needed.
    """
    width = embeds.shape[1]
    level = torch.cat([embeds.new_ones(width // 2), embeds.new_zeros(width - width // 2)])
    return torch.cat([embeds, level.expand(len(embeds), width)], dim=1)


def check_feedback(clip: ClipModel, generator: Generator, feedback: Feedback) -> ImageCondition:
    """Check that a generator can give feedback to a CLIP model.

    Args:
        clip: CLIP model of the tower. Its weights may be on the meta device.
        generator: Diffusion model that gives the feedback.
        feedback: Settings of condition, adapter and prompt.

    Returns:
        The condition.

    Raises:
        UserError: If widths or sizes do not fit, or the CLIP model lacks the patch tokens or blocks that are needed.
    """
    generator.noise_shape_at(feedback.image_size or generator.image_size)
    if feedback.sample_latents:
        check_sampling(generator.space)
    if feedback.prompt.combine == "broadcast" and not isinstance(feedback.condition, Embedding | Cls):
        raise UserError(
            f"prompt.combine: broadcast needs one token, of condition embedding or cls; got {feedback.condition.type}"
        )
    condition: ImageCondition = feedback.condition.build(clip)
    if isinstance(feedback.adapter, NoAdapter):
        _check_without_adapter(clip, generator, feedback, condition.width)
    if feedback.trained.needs_blocks:
        depth = vision_tower(clip).depth
        if isinstance(feedback.trained, LastBlocks) and feedback.trained.blocks > depth:
            raise UserError(
                f"trained.blocks must be at most the number of blocks of {clip.name}, {depth}; "
                f"got {feedback.trained.blocks}"
            )
    return condition


def _check_without_adapter(clip: ClipModel, generator: Generator, feedback: Feedback, width: int) -> None:
    """Check that the generator has its own map from CLIP, or takes tokens of this width."""
    inputs = generator.inputs
    is_class = takes_class(clip, generator)
    if generator.condition_map or is_class:
        map_name = "a condition map" if generator.condition_map else "a class embedding"
        if not isinstance(feedback.condition, Embedding):
            raise UserError(f"the generator has {map_name}, which needs the embedding: set condition.type: embedding")
        if generator.condition_map:
            generator.condition_map.check_width(clip)
    elif inputs.embed_width:
        raise UserError(
            f"the generator's class embedding expects embeddings of width {inputs.embed_width}, got {clip.name} "
            f"with {clip.embed_dim}: set adapter.type: linear"
        )
    elif not inputs.context_width:
        raise UserError("the generator takes a vector of its own instead of CLIP's tokens: set adapter.type: linear")
    elif width != inputs.context_width:
        raise UserError(
            f"the generator has no condition map from a CLIP's joint space, and its context expects width "
            f"{inputs.context_width}, got tokens of {clip.name} with {width}: set adapter.type: linear"
        )


def takes_class(clip: ClipModel, generator: Generator) -> bool:
    """Check whether the generator is an un-CLIP for embeddings of this CLIP model's width."""
    return generator.inputs.embed_width == clip.embed_dim


def needs_prompt(clip: ClipModel, generator: Generator, feedback: Feedback) -> bool:
    """Check whether the conditioning is incomplete without a prompt."""
    if feedback.prompt.combine != "replace":
        return True
    if not isinstance(feedback.adapter, NoAdapter) or generator.condition_map:
        return False
    if not generator.inputs.context_width:
        return False
    return takes_class(clip, generator) or generator.inputs.pooled_width > 0
