"""Tiny members of the families that `diva.tune` supports: CLIP models and generators, with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vfm.models import build_clip, import_generator, save_clip
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint

WIDTH = 64  # of every joint space, so that one un-CLIP suits them all


def register_siglip() -> str:
    """Register a tiny SigLIP encoder in timm (no class token, pooled by attention), and return its name."""
    name = "vit_diva_test_siglip_32"
    size = {"input_size": (3, 32, 32), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    own = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "class_token": False}
    home = ModuleType("diva_test_siglip")
    home.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            VisionTransformer, name, pretrained, **{**own, "global_pool": "map", **kwargs}
        )
        return model

    build.__name__, build.__module__ = name, home.__name__
    sys.modules[home.__name__] = home
    register_model(build)
    return name


TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NATIVE = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
SIGLIP_TEXT |= {"act_kwargs": {"approximate": "tanh"}}
CLIPS: dict[str, dict[str, Any]] = {
    "openai": {"vision_cfg": NATIVE, "text_cfg": TEXT, "quick_gelu": True},
    "openai_sized": {  # its loader assumes heads of 64 channels
        "vision_cfg": {**NATIVE, "width": 64, "head_width": 64},
        "text_cfg": {**TEXT, "width": 64, "heads": 1},
        "quick_gelu": True,
    },
    "dfn": {
        "vision_cfg": {**NATIVE, "patch_size": 4, "layers": 3},
        "text_cfg": {**TEXT, "heads": 1},
        "quick_gelu": True,
    },
    "siglip": {
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": register_siglip(),
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT,
        "custom_text": True,
        "init_logit_bias": -10.0,
    },
    "eva": {
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "eva02_pico_patch8_32",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": TEXT,
        "custom_text": True,
    },
}
FAMILIES = ("openai", "dfn", "siglip", "eva")
STATISTICS = {"siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
CONTEXT, POOLED, PROMPT_LENGTH = 24, 20, 5
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": CONTEXT,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
SDXL["projection_class_embeddings_input_dim"] = POOLED + 6 * 8  # type: ignore[assignment]
UNCLIP = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
FLOW = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 1}
FLOW |= {"joint_attention_dim": CONTEXT, "pooled_projection_dim": POOLED}
SD3 = {
    **FLOW,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "caption_projection_dim": 16,
    "pos_embed_max_size": 8,
}
FLUX = {**FLOW, "in_channels": 16, "num_single_layers": 1, "axes_dims_rope": (2, 2, 4)}
SCALES = {"sdxl": 0.13025, "sd3": 1.5305, "flux": 0.3611}
GENERATORS = ("sd", "sd_v", "sdxl", "unclip", "sd3", "flux")


def family_clip(name: str, folder: Path) -> ClipCheckpoint:
    model = build_clip({"embed_dim": WIDTH, **CLIPS[name]}, seed=0)
    for parameter in model.module.parameters():  # heads and biases that begin at zero would hide errors
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.02)
    if name in STATISTICS:
        mean, std = STATISTICS[name]
        model.preprocess = model.preprocess.model_copy(update={"mean": mean, "std": std})
    return save_clip(model, folder)


def family_network(name: str) -> Any:
    torch.manual_seed(0)
    if name == "sd3":
        return diffusers.SD3Transformer2DModel(**SD3)
    if name == "flux":
        return diffusers.FluxTransformer2DModel(**FLUX)
    return diffusers.UNet2DConditionModel(**UNET, **{"sdxl": SDXL, "unclip": UNCLIP}.get(name, {}))


def family_generator(name: str, folder: Path, *, scale: float | None = None) -> GeneratorCheckpoint:
    """Import a generator from a folder as its authors publish it."""
    source, is_flow = folder / "source", name in ("sd3", "flux")
    family_network(name).save_pretrained(source / ("transformer" if is_flow else "unet"))
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=scale or SCALES.get(name, 0.18215),
    )
    vae.save_pretrained(source / "vae")
    if is_flow:
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=name == "flux")
    else:
        scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction" if name == "sd_v" else "epsilon")
    scheduler.save_pretrained(source / "scheduler")
    if name == "unclip":
        StableUnCLIPImageNormalizer(WIDTH).save_pretrained(source / "image_normalizer")
    return import_generator(str(source), folder / "generator")


OTHER_PARTS = {
    "StableDiffusionPipeline": ("vae", "scheduler", "safety_checker", "feature_extractor"),
    "StableDiffusionXLPipeline": ("vae", "scheduler"),
    "StableDiffusion3Pipeline": ("vae", "scheduler"),
    "StableUnCLIPImg2ImgPipeline": (
        "vae", "scheduler", "feature_extractor", "image_encoder", "image_normalizer", "image_noising_scheduler"
    ),
}  # fmt: skip


def add_text_encoder(folder: Path, pipeline: str, *, second: bool = False) -> None:
    """Write tiny CLIP text encoders, and the index that names the pipeline, into a generator's folder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    words = [*"abcdefghijklmnopqrstuvwxyz.", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz.")]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    files = folder / "words"
    files.mkdir()
    (files / "vocab.json").write_text(json.dumps(vocabulary))
    (files / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(files / "vocab.json"), str(files / "merges.txt"), model_max_length=12)
    is_sd3 = pipeline == "StableDiffusion3Pipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "transformer" if is_sd3 else "unet": ["diffusers", "none"]}
    torch.manual_seed(0)
    half = CONTEXT // 2 if second else CONTEXT
    first_kind = CLIPTextModelWithProjection if is_sd3 else CLIPTextModel
    for suffix, kind in (("", first_kind), ("_2", CLIPTextModelWithProjection))[: 1 + second]:
        config = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=half,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            projection_dim=POOLED,
            eos_token_id=vocabulary["<|endoftext|>"],
        )
        kind(config).save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", kind.__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    index |= {name: ["diffusers", "none"] for name in OTHER_PARTS[pipeline]}
    (folder / "model_index.json").write_text(json.dumps(index))
