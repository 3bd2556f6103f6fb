"""Conversion of CLIP models between open_clip's layout and Hugging Face's (`CLIPModel`): the same tensors, renamed.

Only architectures that `CLIPModel` supports can be saved: open_clip's own ViT tower with a class token, and its causal
text tower. `transformers` itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel, build_clip
from vfm.models.interchange.hugging_face_config import VOCAB_SIZE, hugging_face_config, open_clip_config
from vfm.models.interchange.hugging_face_tokenizer import other_tokenizer, save_tokenizer, tokenizer_mismatches
from vfm.models.transformers_folders.processor import PROCESSOR_FILE, folder_preprocess, processor_config
from vfm.models.weights import INDEX_SUFFIX, find_weights, load_state_dict, save_state_dict
from vfm.storage.store_files import naming, read_record

CONFIG_FILE = "config.json"
_FORMATS = ("model.safetensors", "pytorch_model.bin")
WEIGHTS_FILES = (_FORMATS[0], _FORMATS[0] + INDEX_SUFFIX, _FORMATS[1], _FORMATS[1] + INDEX_SUFFIX)

K = TypeVar("K")
V = TypeVar("V")

# open_clip's name -> Hugging Face's name, for keys outside the blocks.
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_BLOCKS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_PARTS = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}
_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")


def hugging_face_mismatches(model: ClipModel) -> list[str]:
    """List the reasons why a model cannot be a `CLIPModel`; empty if it can."""
    vision, text = model.config["vision_cfg"], model.config["text_cfg"]
    reasons = tokenizer_mismatches(text)
    if not isinstance(model.module.visual, VisionTransformer):
        reasons.append("its vision tower is not open_clip's ViT")
    if model.config.get("init_logit_bias") is not None:
        reasons.append("it has a logit bias")
    if model.preprocess.resize_mode == "longest":
        reasons.append("its images are padded")
    supported: dict[str, tuple[object, ...]] = {
        "pool_type": ("tok", "argmax"),
        "pos_embed_type": ("learnable",),
        "proj_type": ("linear",),
        "vocab_size": (VOCAB_SIZE,),  # CLIPModel pools at the end token of CLIP's tokenizer
    }
    convertible = {"layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "patch_dropout"}
    convertible |= {"context_length", "hf_tokenizer_name", "tokenizer_kwargs", "output_tokens"}
    for part, config in (("vision_cfg", vision), ("text_cfg", text)):
        for key, value in config.items():
            if value and key not in convertible and not key.startswith("timm") and value not in supported.get(key, ()):
                reasons.append(f"{part}.{key} is {value!r}")
    return reasons


def to_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert open_clip's tensors to Hugging Face's names, with the fused qkv split in three.

    Raises:
        UserError: If a key has no counterpart in the other layout.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        key = name.removeprefix("text.")
        if key in _NAMES:
            out[_NAMES[key]] = tensor
            continue
        if key in _TRANSPOSED:
            out[_TRANSPOSED[key]] = tensor.T
            continue
        block = _rename_prefix(key, _BLOCKS)
        if block is None:
            raise UserError(f"{name} has no counterpart in Hugging Face's CLIPModel")
        if ".attn.in_proj_" in key:
            stem, kind = block.split("attn.in_proj_")
            for part, third in zip(_QKV, tensor.chunk(3), strict=True):
                out[f"{stem}{part}{kind}"] = third
        else:
            out[_rename_part(block, _PARTS)] = tensor
    return out


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert Hugging Face's tensors to open_clip's names, as the inverse of `to_hugging_face`.

    Raises:
        UserError: If a key has no counterpart in the other layout.
    """
    names = _inverse(_NAMES)
    transposed = _inverse(_TRANSPOSED)
    blocks = _inverse(_BLOCKS)
    parts = _inverse(_PARTS)
    out: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if key in names:
            out[names[key]] = tensor
            continue
        if key in transposed:
            out[transposed[key]] = tensor.T
            continue
        if key.endswith("position_ids"):  # the constants 0, 1, 2, ..., saved by older releases
            continue
        block = _rename_prefix(key, blocks)
        if block is None:
            raise UserError(f"{key} has no counterpart in open_clip's CLIP")
        if _QKV[0] in block:
            stem, kind = block.split(_QKV[0])
            thirds = [state_dict[key.replace(_QKV[0], part)] for part in _QKV]
            out[f"{stem}attn.in_proj_{kind}"] = torch.cat(thirds)
        elif not any(part in block for part in _QKV):  # k and v were read together with q
            out[_rename_part(block, parts)] = tensor
    return out


def save_hugging_face(model: ClipModel, directory: Path) -> None:
    """Save a `CLIPModel` and the files of `CLIPProcessor`.

    The folder has configuration, weights, image settings and tokenizer.

    Raises:
        UserError: If `CLIPModel` does not support the architecture.
    """
    reasons = hugging_face_mismatches(model)
    if reasons:
        raise UserError(
            f"{model.name}: cannot be a Hugging Face CLIPModel: {', '.join(reasons)}; use open_clip's layout"
        )
    tensors = to_hugging_face(model.module.state_dict())
    directory.mkdir(parents=True, exist_ok=True)
    for name, record in (
        (CONFIG_FILE, hugging_face_config(model)),
        (PROCESSOR_FILE, processor_config(model.preprocess)),
    ):
        (directory / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(model, directory, reads_padding=False)
    save_state_dict(tensors, directory / WEIGHTS_FILES[0])


def load_hugging_face(folder: Path) -> ClipModel:
    """Load the model of a folder in the layout of `CLIPModel`.

    Raises:
        UserError: If the folder holds a model of another type, or its weights do not fit its configuration.
    """
    config, weights = read_hugging_face_config(folder), find_weights(folder, WEIGHTS_FILES)
    with naming(folder / CONFIG_FILE, "the configuration of a CLIP model"):
        model = build_clip(config)
    model.name, model.folder = folder.name, folder
    try:
        model.module.load_state_dict(from_hugging_face(load_state_dict(weights)))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{weights}: does not fit its {CONFIG_FILE}: {' '.join(str(error).split())[:300]}") from None
    model.preprocess = folder_preprocess(folder, "clip", model.preprocess.image_size)
    model.module.eval()
    return model


def read_hugging_face_config(folder: Path) -> dict[str, Any]:
    """Read open_clip's configuration of a folder in the layout of `CLIPModel`.

    Raises:
        UserError: If the folder holds a model of another type.
    """
    file = folder / CONFIG_FILE
    record = read_record(file)
    model_type = record.get("model_type")
    if model_type != "clip":
        raise UserError(f"{file}: expected a Hugging Face model of type clip, siglip or siglip2, got {model_type!r}")
    with naming(file, "the configuration of a CLIP model"):
        config = open_clip_config(record)
    tokenizer = other_tokenizer(folder)
    if tokenizer:
        config["text_cfg"]["hf_tokenizer_name"] = tokenizer
    return config


def _rename_prefix(key: str, prefixes: Mapping[str, str]) -> str | None:
    """Rename the prefix of a block's key. A key outside the blocks gives None."""
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return None


def _rename_part(block: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        if old in block:
            return block.replace(old, new)
    raise UserError(f"{block} has no counterpart")


def _inverse(rules: Mapping[K, V]) -> dict[V, K]:
    return {new: old for old, new in rules.items()}
