"""The measured models: Stable Diffusion 2.1 and ViT-L-14 without data, and tiny models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from vfm.data import map_tensors
from vfm.models import ClipModel, blueprint, build_clip
from vfm_diva import Feedback
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import Denoiser
from vfm_diva.generator.generator import BETAS, Generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.generator.space import LatentSpace
from vfm_diva.tune.tune_task import TuneTask

PROMPT_LENGTH = 77
NUM_TIMES = 2
DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

FULL: dict[str, Any] = {
    "clip": "ViT-L-14",
    "unet": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": DOWN,
        "up_block_types": UP,
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
}
TOY: dict[str, Any] = {
    "clip": "ViT-Pico-8-64",
    "unet": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    "vae": {"block_out_channels": (16, 32, 32), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 8},
    "text": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@dataclass
class Parts:
    """A CLIP model, a generator, and the generator's text encoder."""

    clip: ClipModel
    generator: Generator
    text: Any
    prompt: Tensor  # token ids, (1, 77)

    def task(self, **changes: Any) -> TuneTask:
        """Build the task of the released code: patches through a linear map, added to text states, no anchor."""
        settings = {
            "condition": {"type": "patches", "share": 0.297},
            "prompt": {"combine": "add"},
            "adapter": {"type": "linear"},
            "anchor": {"type": "none"},
            "max_loss_rise": None,
        }
        with torch.no_grad():
            states = self.text(self.prompt).last_hidden_state
        feedback = Feedback.model_validate({**settings, **changes})
        with self.clip.device:
            return TuneTask(self.clip, self.generator, feedback, prompt=Conditioning(states))

    def inputs(self, size: int, *, seed: int = 0) -> TuneInputs:
        """Draw random inputs for a step."""
        generator = self.generator
        draws = torch.Generator().manual_seed(seed)
        images, target_images = (
            torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=draws)
            for side in (self.clip.preprocess.image_size, generator.image_size)
        )
        num_patches = self.clip.module.visual.positional_embedding.shape[0] - 1
        inputs = TuneInputs(
            images=images,
            target_images=target_images,
            noise=torch.randn(size, NUM_TIMES, *generator.noise_shape, generator=draws),
            times=torch.rand(size, NUM_TIMES, generator=draws),
            patch_draws=torch.rand(size, num_patches, generator=draws),
        )
        return map_tensors(inputs, lambda tensor: tensor.to(self.clip.device))


def build(sizes: dict[str, Any], device: str) -> Parts:
    """Build the parts with random weights, or without data on the meta device."""
    torch.manual_seed(0)
    vae_levels = len(sizes["vae"]["block_out_channels"])
    vae_blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * vae_levels,
        "up_block_types": ("UpDecoderBlock2D",) * vae_levels,
    }
    clip = blueprint(sizes["clip"]) if device == "meta" else build_clip(sizes["clip"], seed=0)
    alphas = DDIMScheduler(**BETAS).alphas_cumprod
    with torch.device(device):
        unet = UNet2DConditionModel(**sizes["unet"]).eval()
        vae = AutoencoderKL(**vae_blocks, **sizes["vae"])
        text = CLIPTextModel(CLIPTextConfig(**sizes["text"])).eval().requires_grad_(False)
        prompt = torch.zeros(1, PROMPT_LENGTH, dtype=torch.long)
    denoiser = Denoiser(unet, "epsilon", alphas).to(device)
    generator = Generator(denoiser, LatentSpace(vae), None, None, sizes["unet"]["sample_size"])
    return Parts(clip, generator, text, prompt)
