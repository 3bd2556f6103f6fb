"""Import ViT, DINOv2, DINOv3, and the towers of SigLIP and CLIP from transformers as timm encoders.

`transformers_folders.encoders` chooses the architecture. Here tensors are renamed, q, k and v are joined, and the image
processor is read. Heads that timm cannot express are left out, for a reason that the report of keys states.

Source: the names are from transformers' `ViTModel`, `Dinov2Model`, `DINOv3ViTModel`, `SiglipVisionModel` and
`CLIPVisionModel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models.interchange.hugging_face import CONFIG_FILE, WEIGHTS_FILES
from vfm.models.preprocess import Preprocess
from vfm.models.transformers_folders.encoders import CLASSIFIERS, timm_source, transformers_record
from vfm.models.transformers_folders.processor import encoder_preprocess
from vfm.models.vision.vision import build_vision, set_class_names
from vfm.models.weight_transfer import KeyReport
from vfm.models.weights import find_weights, load_state_dict

_PREFIX = re.compile(r"^(vit|dinov2|dinov2_with_registers|dinov3_vit|vision_model|model)\.")
_RULES = (
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),  # their spelling
    (r"^(layernorm|post_layernorm|norm)\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.in_proj_", "attn_pool.qkv."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^(classifier|visual_projection)\.", "head."),
    (r"^(encoder\.)?layers?\.(?=\d)", "blocks."),
    (r"(?<=\d\.)(layernorm_before|layer_norm1)\.", "norm1."),
    (r"(?<=\d\.)(layernorm_after|layer_norm2)\.", "norm2."),
    (r"(?<=\d\.)(attention\.attention|attention|self_attn)\.([qkv])(uery|ey|alue|_proj)\.", r"attn.\2."),
    (r"(?<=\d\.)(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", "attn.proj."),
    (r"(?<=\d\.)layer_scale([12])\.lambda1$", r"ls\1.gamma"),
    (r"(?<=\d\.)(intermediate\.dense|mlp\.weights_in|mlp\.up_proj)\.", "mlp.fc1."),
    (r"(?<=\d\.)(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", "mlp.fc2."),
    (r"(?<=\d\.)mlp\.gate_proj\.", "mlp.fc1_g."),
)
_DROPPED = {
    r"(^|\.)mask_token$": "replaces masked patches, used in pre-training only",
    r"^pooler\.": "the pooler is not part of an encoder of timm",
    r"position_ids$": "constants that older releases saved",
    r"^(text_model|text_projection|logit_)": "of the text tower, which is not imported",
}
_OTHER_HEAD = "its head reads more than the class token; timm has no counterpart"
_EVA_NAMES = (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"), (".fc1.", ".fc1_x."))
_QKV = re.compile(r"(?<=attn\.)[qkv](?=\.(weight|bias)$)")


def check_transformers_encoder(folder: Path) -> None:
    """Check a folder's settings and image processor, and that it has weights, without reading them.

    Raises:
        UserError: See `load_transformers_encoder`.
    """
    source = timm_source(folder)
    find_weights(folder, WEIGHTS_FILES)
    encoder_preprocess(folder, str((transformers_record(folder) or {})["model_type"]), source["img_size"])


def load_transformers_encoder(folder: Path, report: KeyReport) -> nn.Module:
    """Load the encoder of a folder in transformers' layout as a timm encoder, in evaluation mode.

    Args:
        folder: The folder.
        report: Filled with what happened to every key of its weights.

    Raises:
        UserError: If it holds a model of another type, a setting has no counterpart, or the weights do not fit.
    """
    record, source = transformers_record(folder) or {}, timm_source(folder)
    file = find_weights(folder, WEIGHTS_FILES)
    tensors = _renamed(load_state_dict(file), str(record.get("model_type")), report)
    if "head.weight" in tensors:
        source["num_classes"] = len(tensors["head.weight"])
    model = build_vision(source)
    try:
        model.load_state_dict(_fitted(tensors, model))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file}: does not fit its {CONFIG_FILE}: {' '.join(str(error).split())[:300]}") from None
    _set_facts(model, folder, record)
    return model.eval()


def _renamed(tensors: Mapping[str, Tensor], model_type: str, report: KeyReport) -> dict[str, Tensor]:
    """Rename tensors to timm's names, apart from q, k and v, and leave out those without a counterpart."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = _PREFIX.sub("", key)
        reason = next((reason for pattern, reason in _DROPPED.items() if re.search(pattern, name)), "")
        if name.startswith("classifier.") and model_type not in CLASSIFIERS:
            reason = _OTHER_HEAD
        if not tensor.numel():
            reason = "without elements: there are no such tokens"
        if reason:
            report.dropped[key] = reason
            continue
        for pattern, new in _RULES:
            name = re.sub(pattern, new, name)
        out[name] = tensor
        report.renamed[key] = _QKV.sub("qkv", name)
    return out


def _fitted(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Join and reshape renamed tensors to the layout of a timm encoder, with zeros for absent biases."""
    expected: dict[str, Tensor] = model.state_dict()
    out = {key: tensor for key, tensor in tensors.items() if not _QKV.search(key)}
    out |= _joined(tensors, expected)
    out |= _pooling(out)
    out = {_name_in(expected, key): tensor for key, tensor in out.items()}
    if model.no_embed_class and "pos_embed" in out:  # timm adds the position of the class token to the token
        positions = out["pos_embed"]  # (1, 1 + N, D)
        out |= {"cls_token": out["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    for key, tensor in expected.items():
        if key not in out and key.endswith("bias"):
            out[key] = torch.zeros_like(tensor)
        elif key in out and out[key].numel() == tensor.numel():
            out[key] = out[key].reshape(tensor.shape)
    return out


def _joined(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join q, k and v of each block. EVA's blocks keep the biases of q and v apart, and DINOv3 has such blocks."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not _QKV.search(key):
            continue
        joint = _QKV.sub("qkv", key)
        if joint in expected and joint not in out:
            out[joint] = torch.cat([tensors[_QKV.sub(part, key)] for part in "qkv"])
        elif joint not in expected:
            out[re.sub(r"([qkv])\.bias$", r"\1_bias", key)] = tensor
    return out


def _pooling(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide the joint projection of pooling by attention into timm's q and kv."""
    out: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        joint = tensors.pop(f"attn_pool.qkv.{kind}", None)
        if joint is not None:
            width = len(joint) // 3
            out[f"attn_pool.q.{kind}"], out[f"attn_pool.kv.{kind}"] = joint[:width], joint[width:]
    return out


def _name_in(expected: Mapping[str, Tensor], key: str) -> str:
    """Find the name of a block's layer in an encoder of timm.

    EVA's blocks name three layers differently. DINOv3 has such blocks.
    """
    if key in expected:
        return key
    for old, new in _EVA_NAMES:
        name = key.replace(old, new)
        if name in expected:
            return name
    return key


def _set_facts(model: nn.Module, folder: Path, record: Mapping[str, Any]) -> None:
    """Store the preprocessing and the class names in timm's configuration of the encoder."""
    size: int = model.patch_embed.img_size[0]  # type: ignore[union-attr, index, assignment]
    preprocess = encoder_preprocess(folder, str(record["model_type"]), size)
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.pretrained_cfg = {**cfg, **_data_config(preprocess)}  # type: ignore[assignment]
    names = record.get("id2label") or {}
    if model.num_classes and len(names) == model.num_classes:
        ordered = [str(names[str(number)]) for number in range(len(names))]
        independent = record.get("problem_type") == "multi_label_classification"
        set_class_names(model, ordered, independent=independent)


def _data_config(preprocess: Preprocess) -> dict[str, Any]:
    """Build the part of timm's configuration that describes a preprocessing."""
    size = preprocess.image_size
    return {
        "input_size": (3, size, size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": "squash" if preprocess.resize_mode == "squash" else "center",
    }
