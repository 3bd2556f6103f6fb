"""Denoiser without convolution or attention, for images so small that their pixels fit one vector."""

# B batch, C channels, h side of the sample, K context tokens, W their width, D width of the hidden layers

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

TIME_CHANNELS = 32  # of the sinusoidal embedding of the time


class MlpDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Residual network on all pixels at once. Each block is scaled and shifted by the condition and the time.

    Args:
        sample_size: Side h of the samples. Other sides do not fit.
        in_channels: Number C of channels.
        cross_attention_dim: Width W of a context token. The condition is the mean of the context tokens.
        width: Width D of the hidden layers.
        num_blocks: Number of residual blocks.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int,
        in_channels: int = 3,
        cross_attention_dim: int = 64,
        width: int = 512,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        pixels = in_channels * sample_size**2
        self.times = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = nn.Linear(TIME_CHANNELS, width)
        self.context = nn.Linear(cross_attention_dim, width)
        self.first = nn.Linear(pixels, width)
        self.last = nn.Linear(width, pixels)
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(num_blocks))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        """Predict from noisy samples and return the prediction as `.sample`, as diffusers' networks do.

        Args:
            sample: Noisy samples, (B, C, h, h).
            timestep: Timesteps from 0 to the length of the schedule, (B,).
            encoder_hidden_states: Context tokens, (B, K, W).
        """
        condition = self.context(encoder_hidden_states.mean(dim=1)) + self.time(self.times(timestep))  # (B, D)
        x = F.silu(self.first(sample.flatten(1)) + condition)
        condition = F.silu(condition)
        for modulation, block in zip(self.modulations, self.blocks, strict=True):
            scale, shift = modulation(condition).chunk(2, dim=1)
            # Around 1, so that an untrained block passes its input on at about its size.
            x = x + F.silu(block(x) * (1 + scale) + shift)
        return SimpleNamespace(sample=torch.as_tensor(self.last(x)).view_as(sample))
