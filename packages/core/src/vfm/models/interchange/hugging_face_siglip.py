"""Conversion of CLIP models with SigLIP's architecture to Hugging Face's layout (`SiglipModel`), by renaming tensors.

The architecture has a timm ViT without a class token, pooled by attention, a text tower without a causal mask that ends
in a linear layer, and a bias on the logits. `transformers` itself is not needed. `hugging_face_siglip_import` reads the
files that are written here.

Source: Zhai et al. 2023, SigLIP (arXiv:2303.15343). The names are from transformers' `SiglipModel`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.interchange.hugging_face import CONFIG_FILE, WEIGHTS_FILES
from vfm.models.interchange.hugging_face_tokenizer import save_tokenizer, tokenizer_mismatches
from vfm.models.transformers_folders.processor import PROCESSOR_FILE, processor_config
from vfm.models.weights import save_state_dict

_NAMES = (
    (r"visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.trunk\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.trunk\.norm\.", "vision_model.post_layernorm."),
    (r"visual\.trunk\.attn_pool\.latent$", "vision_model.head.probe"),
    (r"visual\.trunk\.attn_pool\.proj\.", "vision_model.head.attention.out_proj."),
    (r"visual\.trunk\.attn_pool\.norm\.", "vision_model.head.layernorm."),
    (r"visual\.trunk\.attn_pool\.mlp\.", "vision_model.head.mlp."),
    (r"visual\.trunk\.blocks\.", "vision_model.encoder.layers."),
    (r"text\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"text\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"text\.ln_final\.", "text_model.final_layer_norm."),
    (r"text\.text_projection\.", "text_model.head."),
    (r"text\.transformer\.resblocks\.", "text_model.encoder.layers."),
)
_PARTS = (
    (r"(?<=\d\.)(norm|ln_)(?=[12]\.)", "layer_norm"),
    (r"(?<=\d\.)attn\.(out_)?proj\.", "self_attn.out_proj."),
    (r"(?<=\d\.)mlp\.c_fc\.", "mlp.fc1."),
    (r"(?<=\d\.)mlp\.c_proj\.", "mlp.fc2."),
)
_LOGITS = ("logit_scale", "logit_bias")
_POSITIONS = "visual.trunk.pos_embed"
_POOL = re.compile(r"visual\.trunk\.attn_pool\.(q|kv)\.(weight|bias)$")
_QKV = re.compile(r"(?<=\d\.)attn\.(qkv\.|in_proj_)")


def siglip_mismatches(model: ClipModel) -> list[str]:
    """List the reasons why a model cannot be a `SiglipModel`; empty if it can."""
    visual, text = model.module.visual, model.config["text_cfg"]
    if not isinstance(visual, TimmModel) or not isinstance(visual.trunk, VisionTransformer):
        return ["its vision tower is not timm's ViT"]
    trunk: Any = visual.trunk
    reasons = tokenizer_mismatches(text)
    if trunk.global_pool != "map" or trunk.num_prefix_tokens or len(visual.head):
        reasons.append("its vision tower is not pooled by attention only")
    if getattr(model.module, "logit_bias", None) is None:
        reasons.append("it has no logit bias")
    expected = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    reasons += [f"text_cfg.{key} is not {value}" for key, value in expected.items() if text.get(key) != value]
    if model.preprocess.resize_mode == "longest":
        reasons.append("its images are padded")
    if model.embed_dim != trunk.embed_dim:
        reasons.append("its joint space and its vision tower differ in width")
    if not reasons and _activation(trunk.attn_pool.mlp.act) != _activation(trunk.blocks[0].mlp.act):
        reasons.append("its pooling and its blocks differ in activation")
    try:
        if not reasons:
            to_siglip(model.module.state_dict())
    except UserError as error:
        reasons.append(str(error))
    return reasons


def to_siglip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert open_clip's tensors to Hugging Face's names.

    The blocks' fused q, k, v are split, and the pooling's separate projections are joined.

    Raises:
        UserError: If a key has no counterpart in `SiglipModel`.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        names, part = siglip_names(key)
        if part == "q":
            out[names[0]] = torch.cat([tensor, state_dict[key.replace(".q.", ".kv.")]])
        elif len(names) > 1:
            out.update(zip(names, tensor.chunk(len(names)), strict=True))
        elif key in _LOGITS:
            out[names[0]] = tensor.reshape(1)
        elif part is None:
            out[names[0]] = tensor[0] if key == _POSITIONS else tensor
    return out


def siglip_names(key: str) -> tuple[list[str], str | None]:
    """Convert an open_clip key to the Hugging Face names of its tensor, or of the tensor's parts.

    Returns:
        names: a single name, or three for the fused q, k, v of a block.
        part: `q` or `kv` for a part of the pooling's joint projection, else None.

    Raises:
        UserError: If the key has no counterpart in `SiglipModel`.
    """
    if key in _LOGITS:
        return [key], None
    pooled = _POOL.match(key)
    if pooled:
        return [f"vision_model.head.attention.in_proj_{pooled[2]}"], pooled[1]
    name = _rename(key)
    fused = _QKV.search(name)
    if fused:
        start, kind = name[: fused.start()], name[fused.end() :]
        return [f"{start}self_attn.{part}_proj.{kind}" for part in "qkv"], None
    return [name], None


def siglip_config(model: ClipModel) -> dict[str, Any]:
    """Build the `config.json` of a model."""
    trunk: Any = model.module.visual.trunk  # type: ignore[union-attr]
    tower: Any = model.module.text
    text, block = model.config["text_cfg"], tower.transformer.resblocks[0]
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": trunk.embed_dim,
            "intermediate_size": trunk.blocks[0].mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": trunk.blocks[0].attn.num_heads,
            "image_size": model.preprocess.image_size,
            "patch_size": trunk.patch_embed.patch_size[0],
            "hidden_act": _activation(trunk.blocks[0].mlp.act),
            "layer_norm_eps": trunk.norm.eps,
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "hidden_size": tower.width,
            "intermediate_size": block.mlp.c_fc.out_features,
            "num_hidden_layers": len(tower.transformer.resblocks),
            "num_attention_heads": block.attn.num_heads,
            "max_position_embeddings": model.context_length,
            "vocab_size": text.get("vocab_size", 49408),
            "projection_size": model.embed_dim,
            "hidden_act": _activation(block.mlp.gelu),
            "layer_norm_eps": tower.ln_final.eps,
        },
    }


def save_siglip(model: ClipModel, directory: Path) -> None:
    """Save a `SiglipModel` and the files of `SiglipProcessor`.

    The folder has configuration, weights, image settings and tokenizer.

    Raises:
        UserError: If `SiglipModel` does not support the architecture, or the tokenizer cannot be loaded.
    """
    reasons = siglip_mismatches(model)
    if reasons:
        raise UserError(f"{model.name}: cannot be a Hugging Face SiglipModel: {', '.join(reasons)}")
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(model, directory, reads_padding=True)
    processor = processor_config(model.preprocess)
    if not processor["do_center_crop"]:  # SigLIP's own class cannot crop
        processor["image_processor_type"] = "SiglipImageProcessor"
    for name, record in ((CONFIG_FILE, siglip_config(model)), (PROCESSOR_FILE, processor)):
        (directory / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_state_dict(to_siglip(model.module.state_dict()), directory / WEIGHTS_FILES[0])


def _rename(key: str) -> str:
    """Rename a key, except for the fused q, k, v of a block. `siglip_names` splits these."""
    for old, new in _NAMES:
        name, num_replaced = re.subn(f"^{old}", new, key)
        if num_replaced:
            for ours, theirs in _PARTS:
                name = re.sub(ours, theirs, name)
            return name
    raise UserError(f"{key} has no counterpart in Hugging Face's SiglipModel")


def _activation(act: nn.Module) -> str:
    """Find Hugging Face's name of a GELU, exact or approximated by tanh."""
    is_tanh = getattr(act, "approximate", "none") == "tanh" or type(act).__name__ == "GELUTanh"
    return "gelu_pytorch_tanh" if is_tanh else "gelu"
