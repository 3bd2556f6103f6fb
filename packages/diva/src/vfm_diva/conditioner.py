"""From what a tower makes of images to what a generator is told of them."""

# B batch, D width of the joint space, W width of the context, P of the vector

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.train import Frozen
from vfm_diva.adapter import NoAdapter
from vfm_diva.condition import Seen
from vfm_diva.condition_map import ConditionMap
from vfm_diva.feedback import Feedback
from vfm_diva.fitting import check_fit, needs_prompt, takes_class
from vfm_diva.generator import Generator
from vfm_diva.prompt import combined
from vfm_diva.told import Told


class Conditioner(nn.Module):
    """Tells a generator of images: through an adapter, by the generator's own way with CLIP, or as they are.

    Args:
        clip: whose tokens they are.
        generator: who is told.
        how: which tokens, through what, and beside which prompt.
        prompt: text states of `how.prompt` (`encode_prompt`), where they are needed.
        seed: draws the adapter's first weights.

    Raises:
        UserError: as `check_fit`; the generator's map belongs to another CLIP model, or the prompt is missing.
    """

    prompt_tokens: Tensor | None
    prompt_pooled: Tensor | None

    def __init__(
        self, clip: ClipModel, generator: Generator, how: Feedback, *, prompt: Told | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_fit(clip, generator, how)
        if prompt is None and needs_prompt(clip, generator, how):
            raise UserError(
                f"the generator is to be told the prompt {how.prompt!r} besides; its text states are missing"
            )
        self.combine, self.is_class = how.combine, takes_class(clip, generator)
        self.context_width = generator.wants.context_width
        self.condition_map: Frozen[ConditionMap] | None = None
        self.adapter: nn.Module | None = None
        if not isinstance(how.adapter, NoAdapter):
            width = how.condition.width(clip)
            self.adapter = how.adapter.build(generator.wants, width=width, embed_dim=clip.embed_dim, seed=seed)
        elif generator.condition_map:
            generator.condition_map.check_space(clip)
            self.condition_map = Frozen(generator.condition_map)
        self.register_buffer("prompt_tokens", prompt.tokens if prompt else None, persistent=False)
        self.register_buffer("prompt_pooled", prompt.pooled if prompt else None, persistent=False)

    @property
    def prompt(self) -> Told | None:
        """The constant prompt, where it lies now."""
        return None if self.prompt_tokens is None else Told(self.prompt_tokens, self.prompt_pooled)

    def forward(self, seen: Seen) -> Told:
        """What is told of images."""
        return combined(self.of_images(seen), self.prompt, self.combine)

    def of_images(self, seen: Seen) -> Told:
        """The same without the prompt."""
        if self.adapter is not None:
            told: Told = self.adapter(seen)
            return told
        if self.condition_map:
            return self.condition_map.module.of_images(seen.embeds)
        if self.is_class:
            return Told(seen.embeds.new_zeros(len(seen.embeds), 0, self.context_width), class_vector(seen.embeds))
        return Told(seen.tokens)


def class_vector(embeds: Tensor) -> Tensor:
    """Stable unCLIP's class embedding of image embeddings (B, D) that no noise was added to, (B, 2 D).

    The second half is the sinusoidal code of noise level 0: ones, then zeros. Its mean and deviation of embeddings
    serve the noise alone, so they are not needed.
    """
    width = embeds.shape[1]
    level = torch.cat([embeds.new_ones(width - width // 2), embeds.new_zeros(width // 2)])
    return torch.cat([embeds, level.expand(len(embeds), width)], dim=1)
