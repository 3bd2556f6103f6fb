"""Configurations of CLIP models, converted between Hugging Face's form and open_clip's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.transformers_folders.encoders import mlp_ratio

VOCAB_SIZE, START_OF_TEXT, END_OF_TEXT = 49408, 49406, 49407  # CLIP's own tokenizer
TANH, DEFAULT_EPS = "gelu_pytorch_tanh", 1e-5
ACTIVATIONS = ("quick_gelu", "gelu", TANH)


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
    text = record.get("text_config") or {}
    vision = record.get("vision_config") or {}
    act = vision.get("hidden_act", "quick_gelu")
    text_act = text.get("hidden_act", "quick_gelu")
    # open_clip has one flag, `quick_gelu`, for both towers.
    if act not in ACTIVATIONS or text_act not in ACTIVATIONS or (act == "quick_gelu") != (text_act == "quick_gelu"):
        allowed = "quick_gelu in both towers, or gelu and gelu_pytorch_tanh"
        raise UserError(f"hidden_act: expected {allowed}, got {act!r} and {text_act!r}")
    width = vision.get("hidden_size", 768)
    text_width = text.get("hidden_size", 512)
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
            **_layer_settings(vision),
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": text.get("vocab_size", VOCAB_SIZE),
            "width": text_width,
            "heads": text.get("num_attention_heads", 8),
            "layers": text.get("num_hidden_layers", 12),
            "mlp_ratio": mlp_ratio(text.get("intermediate_size", 2048), text_width),
            **_layer_settings(text),
            **_pooling(text),
        },
    }


def _layer_settings(part: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the settings of a tower's norms and activations that differ from open_clip's defaults."""
    settings: dict[str, Any] = {}
    if part.get("layer_norm_eps", DEFAULT_EPS) != DEFAULT_EPS:
        settings["norm_kwargs"] = {"eps": part["layer_norm_eps"]}
    if part.get("hidden_act") == TANH:
        settings["act_kwargs"] = {"approximate": "tanh"}
    return settings


def _pooling(text: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the pooled token.

    It is the largest number, or for another tokenizer than CLIP's the first end token. OpenAI's files have the end
    token 2. It stands for the largest number in transformers.
    """
    end = text.get("eos_token_id", END_OF_TEXT)
    if end == 2 or (end == END_OF_TEXT and text.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE):
        return {}
    if not isinstance(end, int):
        raise UserError(f"eos_token_id: expected one number, got {end}")
    return {"pool_type": "eos", "eos_id": end}
