"""The baseline: the steps of the released code, written by hand on open_clip and diffusers, without vfm's tasks.

Its redundant work is kept: two diffusion times one after another, each with CLIP's image encoder, text states and
CLIP's text tower, the VAE in every step, frozen weights in fp32. Its mistakes are corrected (the gradient of the first
time, pixels, resizing), so that both compute the same mathematics and losses can be compared.
"""

# B batch, C channels, h side of latents, T tokens, N times

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_diva.generator.inputs import TuneInputs


class PlainLoop:
    """Takes optimizer steps.

    Args:
        clip: an open_clip `CLIP` with a plain vision transformer.
        pixels: converts uint8 images to its inputs.
        adapter: linear map from the joint space to the context's width.
        unet, vae, text: models from diffusers and transformers, frozen.
        prompt: token ids of the constant prompt, (1, 77).
        alphas_cumprod: cumulative products of the noise schedule.
        share: share of the patches in the condition.
    """

    def __init__(
        self,
        clip: Any,
        pixels: Callable[[Tensor], Tensor],
        adapter: nn.Linear,
        *,
        unet: Any,
        vae: Any,
        text: Any,
        prompt: Tensor,
        alphas_cumprod: Tensor,
        share: float,
    ) -> None:
        self.clip, self.pixels, self.adapter, self.unet, self.vae, self.text = clip, pixels, adapter, unet, vae, text
        self.prompt, self.alphas_cumprod, self.share = prompt, alphas_cumprod, share
        for frozen in (unet, vae, text):
            frozen.requires_grad_(False)
        clip.visual.output_tokens = True
        self.params = [*clip.visual.parameters(), *adapter.parameters()]
        self.optimizer = torch.optim.SGD(self.params, lr=1e-4, momentum=0.9)

    def step(self, inputs: TuneInputs) -> float:
        """Take an optimizer step, and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(inputs)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        return loss.item()

    def backward(self, inputs: TuneInputs) -> Tensor:
        """Accumulate the gradients of all times, and return the loss."""
        with torch.no_grad():
            x0 = self.vae.encode(inputs.target_images.float() / 127.5 - 1).latent_dist.mean
            x0 = x0 * self.vae.config.scaling_factor
        num_times, total = inputs.times.shape[1], x0.new_zeros(())
        for time in range(num_times):
            with torch.no_grad():
                states = self.text(self.prompt).last_hidden_state
                # For a classifier that the released code computes and does not use.
                self.clip.encode_text(self.prompt[:, : self.clip.context_length])
            timesteps = (inputs.times[:, time] * len(self.alphas_cumprod)).long()
            alpha = self.alphas_cumprod[timesteps][:, None, None, None]
            noise = inputs.noise[:, time]
            noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
            context = self.adapter(self._tokens(inputs))
            context = context + (states if states.shape[1] == context.shape[1] else states.mean(dim=1, keepdim=True))
            loss = F.mse_loss(self.unet(noisy, timesteps, context).sample, noise) / num_times
            loss.backward()
            total = total + loss.detach()
        return total

    def _tokens(self, inputs: TuneInputs) -> Tensor:
        """Compute the image token and a share of the patch tokens, (B, T, D), with unit scale."""
        image, patches = self.clip.visual(self.pixels(inputs.images))
        count = round(self.share * patches.shape[1])
        chosen = inputs.patch_draws.topk(count, dim=1).indices.sort(dim=1).values
        patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1])) @ self.clip.visual.proj
        tokens = torch.cat([image[:, None], patches], dim=1)
        return F.normalize(tokens, dim=-1) * tokens.shape[-1] ** 0.5
