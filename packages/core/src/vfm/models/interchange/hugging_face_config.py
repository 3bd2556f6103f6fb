"""Configurations of CLIP models and their preprocessing, converted between Hugging Face's form and open_clip's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.preprocess import Preprocess

VOCAB_SIZE, START_OF_TEXT, END_OF_TEXT = 49408, 49406, 49407  # CLIP's own tokenizer
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def hugging_face_config(model: ClipModel) -> dict[str, Any]:
    """Build the `config.json` of a model."""
    vision, text = model.config["vision_cfg"], model.config["text_cfg"]
    width, text_width = vision.get("width", 768), text.get("width", 512)
    shared = {
        "hidden_act": "quick_gelu" if model.config.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": model.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text_width,
            "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
            "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12),
            "max_position_embeddings": model.context_length,
            "vocab_size": text.get("vocab_size", VOCAB_SIZE),
            "bos_token_id": START_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            **shared,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
            "num_attention_heads": width // vision.get("head_width", 64),
            "num_hidden_layers": vision.get("layers", 12),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
            **shared,
        },
    }


def open_clip_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a `config.json` to open_clip's configuration. Missing keys have the defaults of `CLIPConfig`."""
    text, vision = record.get("text_config") or {}, record.get("vision_config") or {}
    act, text_act = (part.get("hidden_act", "quick_gelu") for part in (vision, text))
    if act not in ("quick_gelu", "gelu") or text_act != act:
        raise UserError(f"hidden_act: expected quick_gelu or gelu in both towers, got {act!r} and {text_act!r}")
    width, text_width = vision.get("hidden_size", 768), text.get("hidden_size", 512)
    return {
        "embed_dim": record.get("projection_dim", 512),
        "quick_gelu": act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 32),
            "width": width,
            "layers": vision.get("num_hidden_layers", 12),
            "head_width": width // vision.get("num_attention_heads", 12),
            "mlp_ratio": mlp_ratio(vision.get("intermediate_size", 3072), width),
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": text.get("vocab_size", VOCAB_SIZE),
            "width": text_width,
            "heads": text.get("num_attention_heads", 8),
            "layers": text.get("num_hidden_layers", 12),
            "mlp_ratio": mlp_ratio(text.get("intermediate_size", 2048), text_width),
        },
    }


def mlp_ratio(hidden: int, width: int) -> float:
    """Find the ratio with which open_clip computes `hidden` as `int(width * ratio)`, which may round down by one."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """Build `preprocessor_config.json` for CLIPImageProcessor."""
    side = preprocess.image_size
    squash = preprocess.resize_mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": RESAMPLE[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": {"height": side, "width": side},
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def read_processor(facts: Mapping[str, Any], image_size: int) -> Preprocess:
    """Read the preprocessing in a `preprocessor_config.json`. Missing keys have OpenAI CLIP's values."""
    size = facts.get("size")
    squash = isinstance(size, dict) and "height" in size  # both sides are resized; a crop of the same size keeps all
    interpolations = {number: name for name, number in RESAMPLE.items()}
    cfg = {
        "mean": facts.get("image_mean"),
        "std": facts.get("image_std"),
        "interpolation": interpolations.get(facts.get("resample", 3), "bicubic"),
        "resize_mode": "squash" if squash else "shortest",
    }
    return Preprocess.from_open_clip(cfg, image_size)
