"""Vision encoders of transformers as timm builds them: a name and arguments from the settings in `config.json`.

A setting that timm cannot express is refused by name, since features would change silently. Weights are not
read here, so that a plan knows such an encoder as well.

Defaults are from the configuration classes of transformers. `transformers` itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from vfm.base import UserError, drop_none, keep_keys
from vfm.storage.store_files import naming, read_record

CONFIG_FILE = "config.json"
CLASSIFIERS = ("vit",)  # model types whose classifier reads the class token alone, as timm's does

_SHARED: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "num_channels": 3,
}
_DINOV2 = {**_SHARED, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": 14, "qkv_bias": True}
_DINOV2 |= {"mlp_ratio": 4, "use_swiglu_ffn": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {**_SHARED, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "patch_size": 16, "qkv_bias": True},
    "dinov2": _DINOV2,
    "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
    "dinov3_vit": {
        **_SHARED,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "patch_size": 16,
        "rope_theta": 100.0,
        "num_register_tokens": 0,
        "use_gated_mlp": False,
        "key_bias": False,
    },
    "siglip_vision_model": {
        **_SHARED,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "patch_size": 16,
        "vision_use_head": True,
    },
    "clip_vision_model": {**_SHARED, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
}
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # models with a text tower
MODEL_TYPES = (*DEFAULTS, *_TOWERS)

# The architecture of timm by patch and image size and by width, and the one that is taken if timm has no such name.
_NAMES = {
    "vit": ("vit_{size}_patch{patch}_{image}", "vit_base_patch16_224"),
    "dinov2": ("vit_{size}_patch{patch}_dinov2", "vit_base_patch14_dinov2"),
    "dinov2_with_registers": ("vit_{size}_patch{patch}_reg4_dinov2", "vit_base_patch14_reg4_dinov2"),
    "dinov3_vit": ("vit_{size}_patch{patch}_dinov3_qkvb", "vit_base_patch16_dinov3_qkvb"),
    "siglip_vision_model": ("vit_{size}_patch{patch}_siglip_{image}", "vit_base_patch16_siglip_224"),
    "clip_vision_model": ("vit_{size}_patch{patch}_clip_{image}", "vit_base_patch16_clip_224"),
}
_GATED = "vit_giant_patch14_dinov2"  # DINOv2 with a gated MLP
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge"}  # by width
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
_SMALL_EPS, _CLIP_EPS = 1e-6, 1e-5  # of timm's norms, by architecture


def transformers_record(folder: Path) -> dict[str, Any] | None:
    """Read the configuration of a folder in transformers' layout. Another layout gives None.

    Raises:
        UserError: If the file is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    record = read_record(folder / CONFIG_FILE)
    if "model_type" in record and "architecture" not in record:
        return record
    return None


def is_transformers_encoder(folder: Path) -> bool:
    """Check whether a folder holds a vision encoder of transformers without a text tower."""
    return (transformers_record(folder) or {}).get("model_type") in DEFAULTS


def timm_source(folder: Path) -> dict[str, Any]:
    """Convert a folder's configuration to the mapping with which `build_vision` builds its encoder.

    If the model has a text tower, the mapping describes its vision tower.

    Raises:
        UserError: If the folder holds a model of another type, or a setting has no counterpart in timm.
    """
    file = folder / CONFIG_FILE
    record = transformers_record(folder) or {}
    if record.get("model_type") not in MODEL_TYPES:
        allowed = f"{', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}"
        raise UserError(f"{file}: expected an encoder of type {allowed}, got {record.get('model_type')!r}")
    with naming(file, "the configuration of an encoder"):
        model_type, facts = encoder_settings(record)
        return _source(model_type, facts)


def encoder_settings(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Find the type of a configuration's encoder and its settings, with defaults for keys that the file leaves out."""
    model_type = str(record["model_type"])
    tower = _TOWERS.get(model_type)
    settings = (record.get("vision_config") or {}) if tower else record
    model_type = tower or model_type
    defaults = DEFAULTS[model_type]
    facts = {**defaults, **drop_none(keep_keys(settings, defaults))}
    return model_type, facts


def mlp_ratio(hidden: int, width: int) -> float:
    """Find the ratio for which `int(width * ratio)`, as timm and open_clip compute it, is `hidden`."""
    ratio = hidden / width
    if int(width * ratio) == hidden:
        return ratio
    return (hidden + 0.5) / width


def _source(model_type: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    image = _side("image_size", facts["image_size"])
    patch = _side("patch_size", facts["patch_size"])
    if facts["num_channels"] != 3:
        raise UserError(f"num_channels: expected 3, got {facts['num_channels']}")
    width = facts["hidden_size"]
    arguments: dict[str, Any] = {
        "img_size": image,
        "patch_size": patch,
        "embed_dim": width,
        "depth": facts["num_hidden_layers"],
        "num_heads": facts["num_attention_heads"],
        "mlp_ratio": mlp_ratio(facts["intermediate_size"], width),
        "global_pool": "token",
        "num_classes": 0,
    }
    template, default = _NAMES[model_type]
    name = template.format(size=_SIZES.get(width), patch=patch, image=image)
    name = name if timm.is_model(name) else default
    if model_type == "dinov3_vit":
        return {"architecture": name, **arguments, **_dinov3_arguments(facts)}
    arguments |= {"act_layer": _activation(facts), "qkv_bias": facts.get("qkv_bias", True)}
    if model_type == "siglip_vision_model":
        arguments |= {"global_pool": "map"} if facts["vision_use_head"] else {"global_pool": "avg", "fc_norm": False}
    elif model_type.startswith("dinov2"):
        arguments |= _dinov2_arguments(facts)
        name = _GATED if facts["use_swiglu_ffn"] else name
    return {"architecture": name, **arguments, **_norms(model_type, name, facts["layer_norm_eps"])}


def _norms(model_type: str, name: str, eps: float) -> dict[str, Any]:
    """Choose the epsilon of the norms.

    A name of CLIP in timm stands for 1e-5, and any other name for 1e-6. A smaller epsilon, such as 1e-12, differs by
    less than the rounding of features whose variance is not tiny.
    """
    is_clip = model_type == "clip_vision_model"
    expected = f"{_CLIP_EPS:g}" if is_clip else f"{_SMALL_EPS:g} or less, or {_CLIP_EPS:g}"
    if eps == _CLIP_EPS and is_clip:
        return {}
    if eps == _CLIP_EPS and name != _GATED:
        return {"architecture": _NAMES["clip_vision_model"][1], "pre_norm": False, **_as_clip(model_type)}
    if eps > _SMALL_EPS or is_clip:
        raise UserError(f"layer_norm_eps: expected {expected}, got {eps:g}")
    return {}


def _as_clip(model_type: str) -> dict[str, Any]:
    """List the arguments that the architectures of a type have, for an encoder that is built by a name of CLIP."""
    if model_type == "siglip_vision_model":
        return {"class_token": False}
    if model_type == "dinov2_with_registers":
        return {"no_embed_class": True}
    return {}


def _dinov2_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    width = facts["hidden_size"]
    hidden = int(width * facts["mlp_ratio"])
    if facts["use_swiglu_ffn"]:
        # Two thirds, rounded up to a multiple of 8; the first layer has this width twice, for the gate as well.
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)
    arguments: dict[str, Any] = {"mlp_ratio": mlp_ratio(hidden, width), "init_values": 1e-5}
    if facts["use_swiglu_ffn"]:
        arguments["act_layer"] = "silu"
    if "num_register_tokens" in facts:
        arguments |= {"reg_tokens": facts["num_register_tokens"], "no_embed_class": True}
    return arguments


def _dinov3_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    expected = "silu" if facts["use_gated_mlp"] else "gelu"
    if facts["hidden_act"] != expected:
        kind = "a gated MLP" if facts["use_gated_mlp"] else "an MLP"
        raise UserError(f"hidden_act: expected {expected} for {kind} of DINOv3, got {facts['hidden_act']!r}")
    if facts["key_bias"]:
        raise UserError("key_bias: expected false, got true")
    if facts["layer_norm_eps"] != _CLIP_EPS:
        raise UserError(f"layer_norm_eps: expected {_CLIP_EPS:g}, got {facts['layer_norm_eps']:g}")
    return {
        "qkv_bias": True,
        "num_reg_tokens": facts["num_register_tokens"],
        "rope_temperature": facts["rope_theta"],
        "swiglu_mlp": facts["use_gated_mlp"],
        "swiglu_align_to": 1,  # gate and value are two layers then
    }


def _activation(facts: Mapping[str, Any]) -> str:
    if facts["hidden_act"] not in _ACTIVATIONS:
        raise UserError(f"hidden_act: expected {', '.join(_ACTIVATIONS)}, got {facts['hidden_act']!r}")
    return _ACTIVATIONS[facts["hidden_act"]]


def _side(key: str, value: Any) -> int:
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise UserError(f"{key}: expected a square, got {value}")
    return int(sides.pop())
