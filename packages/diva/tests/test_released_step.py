"""The step of `diva-paper` equals DIVA's released one for every backbone, re-typed here in plain torch.

Each look-alike has the number of patches of its backbone and keeps the tokens that the released code keeps. The three
departures that change numbers are switched off: patches drawn anew for each time with replacement and unsorted, and
tokens of unit scale. The two losses are averaged, as the paper says; the code's weights are in `test_surprises`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from diva_families import CONTEXT, SIGLIP_TEXT, TEXT
from diva_toy import make_stable_diffusion
from vfm.models import ClipModel, build_clip
from vfm.plugin import GeneratorCheckpoint
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.tune.stages import DivaTune
from vfm_diva.tune.tune_task import TuneTask

# backbone: preset, side of the grid, tokens beside the image token, patches per average (0: patches are drawn)
BACKBONES: dict[str, tuple[str, int, int, int]] = {
    "OpenAI L-224": ("diva-paper", 16, 76, 0),
    "OpenAI L-336": ("diva-paper", 24, 76, 0),
    "MetaCLIP L and H": ("diva-paper-metaclip", 16, 256, 0),
    "DFN H-224": ("diva-paper-dfn-224", 16, 256, 0),
    "DFN H-378": ("diva-paper-dfn-378", 27, 364, 0),
    "SigLIP 224": ("diva-paper-siglip-224", 16, 42, 6),
    "SigLIP 384": ("diva-paper-siglip-384", 27, 72, 10),
}
AS_CODE = {"replacement": True, "in_order": False, "draw_per_time": True}
NUM_STATES = 77


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    return make_stable_diffusion(tmp_path_factory.mktemp("sd"), width=CONTEXT)


def siglip_encoder(side: int) -> str:
    """Register a SigLIP encoder whose image, like SigLIP's of 384 pixels, may leave a rest beside its patches."""
    size = 2 * side + (side % 2)  # 55 pixels have 27 patches of 2 and a rest, as 384 have 27 of 14
    name = f"vit_released_step_siglip_{size}"
    home = ModuleType(name)
    facts = {"input_size": (3, size, size), "num_classes": 0, "fixed_input_size": True, "classifier": "head"}
    home.default_cfgs = generate_default_cfgs({name: {**facts, "first_conv": "patch_embed.proj"}})  # type: ignore[attr-defined]
    own = {"img_size": size, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "class_token": False}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        built: nn.Module = build_model_with_cfg(
            VisionTransformer, name, pretrained, **{**own, "global_pool": "map", **kwargs}
        )
        return built

    build.__name__, build.__module__ = name, home.__name__
    sys.modules[home.__name__] = home
    register_model(build)
    return name


def look_alike(side: int, window: int) -> ClipModel:
    if window:
        name = siglip_encoder(side)
        size = int(name.rpartition("_")[2])
        vision = {"image_size": size, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
        text: dict[str, Any] = {"text_cfg": SIGLIP_TEXT, "custom_text": True, "init_logit_bias": -10.0}
    else:
        vision = {"image_size": side, "patch_size": 1, "width": 16, "layers": 1, "head_width": 8}
        text = {"text_cfg": TEXT, "quick_gelu": True}
    model = build_clip({"embed_dim": 16, "vision_cfg": vision, **text}, seed=0)
    model.module.eval()
    for parameter in model.module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return model


def plain_tokens(model: ClipModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image token, (B, D), and the patch tokens, (B, N, D), as the patched libraries of the code do."""
    visual: Any = model.module.visual
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        x = trunk.patch_embed(pixels) + trunk.pos_embed
        for block in trunk.blocks:
            x = block(x)
        x = trunk.norm(x)
        return trunk.attn_pool(x), x
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        x = block(x)
    x = visual.ln_post(x) @ visual.proj
    return x[:, 0], x[:, 1:]


def released_loss(task: TuneTask, inputs: TuneInputs, states: Tensor, count: int, window: int) -> Tensor:
    """Return the loss of the released step: tokens through one linear layer, added to text states, and two errors."""
    adapter: Any = task.conditioner.adapter
    with torch.no_grad():
        target = 2 * inputs.target_images.float() / 255 - 1
        latents = task.generator.space.vae.encode(target).latent_dist.mean * 0.18215
    losses = []
    for step in range(inputs.times.shape[1]):
        whole, patches = plain_tokens(task.clip, task.clip.pixels(inputs.images))
        number = patches.shape[1]
        if window:
            local = F.avg_pool1d(patches.transpose(1, 2), window).transpose(1, 2)
        elif count < number:
            places = (inputs.patch_draws[:, step * count : (step + 1) * count] * number).long()
            local = torch.stack([row[place] for row, place in zip(patches, places, strict=True)])
        else:
            local = patches
        tokens = torch.cat([whole[:, None], local], dim=1)
        assert tokens.shape[1] == count + 1
        visual = F.linear(tokens, adapter.tokens.weight, adapter.tokens.bias)
        if tokens.shape[1] == NUM_STATES:
            context = states + visual
        else:
            context = states.mean(dim=1, keepdim=True) + visual
        timestep = (inputs.times[:, step] * 1000).long()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        signal = torch.cumprod(1 - betas, dim=0)[timestep].view(-1, 1, 1, 1)
        noise = inputs.noise[:, step]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        network: Any = task.generator.denoiser.network
        predicted = network(noisy, timestep, encoder_hidden_states=context).sample
        losses.append(F.mse_loss(predicted, noise))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_step_and_its_gradient_are_the_released_ones(backbone: str, generator: GeneratorCheckpoint) -> None:
    preset, side, count, window = BACKBONES[backbone]
    model = look_alike(side, window)
    drawn = not window and count < side**2
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "sd", "preset": preset}
    own = {"adapter": {"unit_scale": False}, **({"condition": AS_CODE} if drawn else {})}
    config = DivaTune.model_validate({**given, **own})
    draws = torch.Generator().manual_seed(1)
    states = torch.randn(1, NUM_STATES, CONTEXT, generator=draws)
    task = TuneTask(model, load_generator(generator), config, prompt=Conditioning(states))
    size = model.preprocess.image_size
    inputs = TuneInputs(
        images=torch.randint(256, (2, 3, size, size), generator=draws, dtype=torch.uint8),
        target_images=torch.randint(256, (2, 3, 16, 16), generator=draws, dtype=torch.uint8),
        noise=torch.randn(2, 2, *task.generator.noise_shape, generator=draws),
        times=torch.rand(2, 2, generator=draws),
        patch_draws=torch.rand(2, 2 * count, generator=draws) if drawn else None,
    )
    names = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    loss, released = task(inputs)[0], released_loss(task, inputs, states, count, window)
    assert loss.item() == pytest.approx(released.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(each, trained) for each in (loss, released))
    scale = max(float(each.abs().max()) for each in theirs)
    assert scale > 1e-6
    for name, mine, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5 * scale, rtol=1e-4, msg=name)
