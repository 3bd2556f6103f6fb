"""Import of SigLIP and SigLIP 2 from Hugging Face's layout as an open_clip model, the inverse of `hugging_face_siglip`.

`SiglipModel` holds SigLIP and the SigLIP 2 models with a fixed image size. `Siglip2Model` holds the SigLIP 2 models for
images of any shape (NaFlex), which are read at the square size that their positions were learned for.

Source: Zhai et al. 2023, SigLIP (arXiv:2303.15343). Tschannen et al. 2025, SigLIP 2 (arXiv:2502.14786). Names and
defaults are from transformers' `SiglipModel` and `Siglip2Model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from vfm.base import UserError, keep_keys
from vfm.models.clip.clip import ClipModel, blueprint, build_clip
from vfm.models.interchange.hugging_face import CONFIG_FILE, WEIGHTS_FILES, load_hugging_face, read_hugging_face_config
from vfm.models.interchange.hugging_face_config import TANH
from vfm.models.interchange.hugging_face_siglip import siglip_config, siglip_names
from vfm.models.interchange.hugging_face_tokenizer import other_tokenizer
from vfm.models.transformers_folders.encoders import mlp_ratio
from vfm.models.transformers_folders.processor import folder_preprocess
from vfm.models.weights import find_weights, load_state_dict
from vfm.storage.store_files import read_record

_SHARED = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VISION: dict[str, Any] = {**_SHARED, "image_size": 224, "patch_size": 16}
_TEXT: dict[str, Any] = {**_SHARED, "max_position_embeddings": 64, "vocab_size": 32000}
# Tokenizers by the size of their vocabulary. Another size, such as CLIP's, means open_clip's own tokenizer.
_TOKENIZERS = {
    32000: "timm/ViT-B-16-SigLIP",
    250000: "timm/ViT-B-16-SigLIP-i18n-256",
    256000: "timm/ViT-B-16-SigLIP2",
}
SIGLIP_TYPES = ("siglip", "siglip2")
_PATCHES = "visual.trunk.patch_embed.proj.weight"
_APPROXIMATE = {"gelu": "none", TANH: "tanh"}


def load_transformers_model(folder: Path) -> ClipModel:
    """Load the model of a folder in the layout of `CLIPModel`, `SiglipModel` or `Siglip2Model`.

    Raises:
        UserError: If the folder holds a model of another type, or its weights do not fit its configuration.
    """
    is_siglip = read_record(folder / CONFIG_FILE).get("model_type") in SIGLIP_TYPES
    return load_siglip(folder) if is_siglip else load_hugging_face(folder)


def transformers_model_config(folder: Path) -> dict[str, Any]:
    """Read open_clip's configuration of the model that `load_transformers_model` loads.

    Raises:
        UserError: If the folder holds a model of another type.
    """
    record = read_record(folder / CONFIG_FILE)
    if record.get("model_type") not in SIGLIP_TYPES:
        return read_hugging_face_config(folder)
    return open_clip_siglip_config(record, str(folder), other_tokenizer(folder))


def load_siglip(folder: Path) -> ClipModel:
    """Load the model of a folder in the layout of `SiglipModel`, with the folder's tokenizer if it has one.

    Raises:
        UserError: If timm has no encoder of its shapes, or its weights do not fit its configuration.
    """
    weights = find_weights(folder, WEIGHTS_FILES)
    model = build_clip(transformers_model_config(folder))
    model.name, model.folder = folder.name, folder
    try:
        model.module.load_state_dict(from_siglip(load_state_dict(weights), model.module.state_dict()))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{weights}: does not fit its {CONFIG_FILE}: {' '.join(str(error).split())[:300]}") from None
    model_type = read_record(folder / CONFIG_FILE)["model_type"]
    model.preprocess = folder_preprocess(folder, model_type, model.preprocess.image_size)
    model.module.eval()
    return model


def open_clip_siglip_config(record: Mapping[str, Any], where: str, tokenizer: str | None = None) -> dict[str, Any]:
    """Convert a `config.json` to open_clip's configuration. Missing keys have the defaults of `SiglipConfig`.

    Args:
        record: The content of the file.
        where: Its folder, for errors.
        tokenizer: Name of the folder's tokenizer, for vocabularies that are not known by their size.

    Raises:
        UserError: If timm has no encoder of these shapes, or an activation is not a GELU.
    """
    vision = {**_VISION, **keep_keys(record.get("vision_config") or {}, _VISION)}
    if record.get("model_type") == "siglip2":  # the grid of the learned positions
        patches = (record.get("vision_config") or {}).get("num_patches", 256)
        vision["image_size"] = math.isqrt(patches) * vision["patch_size"]
    text = {**_TEXT, **keep_keys(record.get("text_config") or {}, _TEXT)}
    for part in (vision, text):
        if part["hidden_act"] not in _APPROXIMATE:
            raise UserError(f"{where}: hidden_act: expected {' or '.join(_APPROXIMATE)}, got {part['hidden_act']!r}")
    width = text["hidden_size"]
    text_cfg = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": width,
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": mlp_ratio(text["intermediate_size"], width),
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": text["layer_norm_eps"]},
        "act_kwargs": {"approximate": "tanh"} if text["hidden_act"] == TANH else {},
    }
    name = _TOKENIZERS.get(text["vocab_size"])
    if name:
        text_cfg |= {"hf_tokenizer_name": name, "tokenizer_kwargs": {"clean": "canonicalize"}}
    elif tokenizer:
        text_cfg["hf_tokenizer_name"] = tokenizer
    for encoder in _encoders(vision):
        config = {
            "embed_dim": vision["hidden_size"],
            "vision_cfg": {
                "image_size": vision["image_size"],
                "timm_model_name": encoder,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": text_cfg,
            "custom_text": True,
            "init_logit_bias": -10.0,
        }
        activation = _activation_of_fitting(config, vision)
        if activation == vision["hidden_act"]:
            return config
        if activation:
            vision_cfg = {**config["vision_cfg"], "act_kwargs": {"approximate": _APPROXIMATE[vision["hidden_act"]]}}
            return {**config, "vision_cfg": vision_cfg}
    shape = ", ".join(f"{key} {value}" for key, value in vision.items())
    raise UserError(f"{where}: timm has no SigLIP encoder of these shapes: {shape}")


def from_siglip(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert Hugging Face's tensors to open_clip's names, as the inverse of `to_siglip`.

    Args:
        tensors: Tensors of a `SiglipModel`.
        like: State dict of the open_clip model.

    Raises:
        KeyError: If a tensor is missing.
        UserError: If a tensor has no counterpart in open_clip's model.
    """
    unused = {key for key in tensors if not key.endswith("position_ids")}  # constants, saved by older releases
    out: dict[str, Tensor] = {}
    for key, expected in like.items():
        names, part = siglip_names(key)
        joined = tensors[names[0]]
        if len(names) > 1:
            joined = torch.cat([tensors[name] for name in names])
        unused -= set(names)
        if part is not None:  # a part of the pooling's joint projection
            width = len(joined) // 3
            joined = joined[:width] if part == "q" else joined[width:]
        if key == _PATCHES and joined.ndim == 2:  # NaFlex: a linear layer over pixels (P, P, 3)
            width, _, *patch = expected.shape
            joined = joined.reshape(width, *patch, -1).movedim(-1, 1)
        if joined.numel() == expected.numel():
            joined = joined.reshape(expected.shape)
        out[key] = joined
    if unused:
        raise UserError(f"{min(unused)} has no counterpart in open_clip's SigLIP")
    return out


def _encoders(vision: Mapping[str, Any]) -> list[str]:
    """List timm's SigLIP encoders with pooling by attention, starting with the ones named after this image size."""
    names = [name for name in timm.list_models("*siglip*") if "_gap" not in name and not name.startswith("naflex")]
    return sorted(names, key=lambda name: not name.endswith(f"_{vision['image_size']}"))


def _activation_of_fitting(config: Mapping[str, Any], vision: Mapping[str, Any]) -> str:
    """Find the activation of the encoder if it has these shapes, else "".

    Shapes are computed without weights.
    """
    try:
        built = siglip_config(blueprint(config))["vision_config"]
    except UserError:  # the image size does not fit its patches
        return ""
    for key, value in vision.items():
        if key != "hidden_act" and built[key] != value:
            return ""
    return str(built["hidden_act"])
