"""Key layouts of the official EVA checkpoints and timm's names for the same tensors: one table for both directions.

    mim             cls_token, pos_embed, patch_embed.*, blocks.N.*, norm.*; from pre-training: mask_token, lm_head.*
    classification  the same with fc_norm.* (or norm.* for the class token) and head.*
    clip            visual.* as classification, its head the projection; text.*, logit_scale

    family           attention                                feed-forward
    EVA-01           attn.qkv.weight, q_bias, v_bias          mlp.fc1, mlp.fc2
    EVA-02 Ti, S     attn.qkv.weight, q_bias, v_bias          mlp.w12 (gate first), mlp.w3
    EVA-02 B, L      attn.{q,k,v}_proj.weight, q_bias, v_bias mlp.w1, mlp.w2, mlp.w3, mlp.ffn_ln
    EVA-02-CLIP      the same, and attn.inner_attn_ln         the same
    EVA-L (MAE)      attn.qkv.weight, attn.qkv.bias           mlp.fc1, mlp.fc2; decoder_* of pre-training

Tables of rotary positions are left out when a file is read, since timm computes them from the grid. They are written to
exported files, since the official classes expect them.

Source: the key layouts of the public EVA repository (arXiv:2211.07636, 2303.11331, 2303.15389).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from timm.layers import RotaryEmbeddingCat
from torch import Tensor

from vfm.base import UserError
from vfm.models.weight_transfer import TRUNK, KeyReport

Layout = Literal["mim", "classification", "clip"]
Tensors = Mapping[str, Tensor]
VISUAL = "visual."  # the vision tower, in the clip layout

PRE_TRAINING = {
    "mask_token": "replaces masked patches, used in pre-training only",
    "lm_head.": "predicts masked features, used in pre-training only",
    "decoder_": "the decoder of MAE-style pre-training",
}
ROPE = {"rope": "recomputed from the grid"}


@dataclass(frozen=True)
class Rename:
    """A part of a key in the official layouts and in timm's.

    A part may occur in several families with different names, so each direction has a condition on the state dict.
    """

    official: str
    timm: str
    on_export: Callable[[Tensors], bool] = lambda tensors: True
    on_import: Callable[[Tensors], bool] = lambda tensors: True


def _split_attention(tensors: Tensors) -> bool:
    """Check whether q, k and v have separate weights, whose names are the same in both layouts."""
    return _first_block_has(tensors, "attn.q_proj.weight")


def _split_gate(tensors: Tensors) -> bool:
    """Check whether timm's SwiGLU has separate weights for gate and value."""
    return _first_block_has(tensors, "mlp.fc1_g.weight")


def _first_block_has(tensors: Tensors, name: str) -> bool:
    return any(key.endswith(f"blocks.0.{name}") for key in tensors)


def _packed_gate(tensors: Tensors) -> bool:
    """Check whether timm's SwiGLU has one weight for gate and value, with twice the channels that `fc2` takes."""
    marker = "blocks.0.mlp."
    shapes = {key.partition(marker)[2]: value.shape for key, value in tensors.items() if marker in key}
    return "fc1.weight" in shapes and shapes["fc1.weight"][0] == 2 * shapes["fc2.weight"][1]


RENAMES = (
    Rename(".attn.q_bias", ".attn.q_proj.bias", on_import=_split_attention),
    Rename(".attn.v_bias", ".attn.v_proj.bias", on_import=_split_attention),
    Rename(".attn.inner_attn_ln.", ".attn.norm."),
    Rename(".mlp.ffn_ln.", ".mlp.norm."),
    Rename(".mlp.w12.", ".mlp.fc1.", on_export=_packed_gate),
    Rename(".mlp.w1.", ".mlp.fc1_g."),
    Rename(".mlp.w2.", ".mlp.fc1_x."),
    Rename(".mlp.w3.", ".mlp.fc2.", on_export=lambda tensors: _split_gate(tensors) or _packed_gate(tensors)),
)

# All keys of a vision encoder, and all other keys of a CLIP model, that the official layouts can hold.
_VISION = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|(fc_norm|norm|head)\.(weight|bias)"
    r"|blocks\.\d+\.(gamma_[12]|(norm[12]|attn\.(proj|inner_attn_ln)|mlp\.(fc[12]|w12|w[123]|ffn_ln))\.(weight|bias))"
    r"|blocks\.\d+\.attn\.(qkv\.(weight|bias)|[qkv]_proj\.weight|[qv]_bias)"
)
_TEXT = re.compile(
    r"logit_scale|text\.(token_embedding\.weight|positional_embedding|text_projection|ln_final\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\.(ln_[12]\.(weight|bias)|mlp\.c_(fc|proj)\.(weight|bias)"
    r"|attn\.(in_proj_(weight|bias)|out_proj\.(weight|bias))))"
)


def layout_of(tensors: Tensors) -> Layout:
    """Determine the layout of a state dict, in official or timm's names."""
    if any(key.startswith(VISUAL) for key in tensors):
        return "clip"
    return "classification" if "head.weight" in tensors else "mim"


def to_timm(tensors: Tensors) -> Callable[[str], str]:
    """Build a function from a key of an official state dict to timm's name (in the clip layout: open_clip's).

    Keys that are timm's or open_clip's already are returned unchanged.
    """
    rules = [(rule.official, rule.timm) for rule in RENAMES if rule.on_import(tensors)]

    def rename(key: str) -> str:
        if key == "text.logit_scale":  # in older files
            return "logit_scale"
        prefix, name = _split(key)
        if prefix is None:
            return key
        return f"{TRUNK if prefix else ''}{_replaced(name, rules)}"

    return rename


def to_official(tensors: Tensors, trunk: Any, report: KeyReport) -> dict[str, Tensor]:
    """Convert the state dict of an encoder or a CLIP model to the official layout, as the inverse of `to_timm`.

    Args:
        tensors: Tensors of a timm encoder, or of an open_clip model whose vision tower is a timm encoder.
        trunk: That encoder, whose rotary positions are added.
        report: Filled with what happened to every key.

    Raises:
        UserError: If the official layouts have no entry for a key.
    """
    layout = layout_of(tensors)
    rules = [(rule.timm, rule.official) for rule in RENAMES if rule.on_export(tensors)]
    if layout == "mim":
        rules.append(("fc_norm.", "norm."))
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        prefix, name = _split(key)
        if prefix is None:  # outside the vision tower
            target = key
            is_known = _TEXT.fullmatch(key)
        else:
            official = _replaced(name, rules)
            target = f"{VISUAL if prefix else ''}{official}"
            is_known = _VISION.fullmatch(official)
        if not is_known:
            raise UserError(f"it has {key}, which the official EVA layouts lack")
        out[target] = tensor
        if target == key:
            report.taken.append(key)
        else:
            report.renamed[key] = target
    tables = _rotary_tables(trunk, VISUAL if layout == "clip" else "")
    report.new.update(dict.fromkeys(tables, "rotary positions of the grid, which the official classes load"))
    return {**out, **tables}


def official_masked_modelling(added: Tensors) -> dict[str, Tensor]:
    """Rename mask token, head and decoder (`vision.masked_modelling`) as in EVA's pre-training classes."""
    has_decoder = any(key.startswith("decoder.") for key in added)
    head = "decoder_pred." if has_decoder else "lm_head."
    out: dict[str, Tensor] = {}
    for key, value in added.items():
        official = key.replace("head.", head, 1).replace("decoder.", "decoder_", 1)
        out[official] = value.reshape(1, 1, -1) if official == "mask_token" else value
    return out


def masked_modelling_of(tensors: Tensors) -> dict[str, Tensor]:
    """Select and rename mask token, head and decoder of an official pre-training file."""
    # The order matters: `decoder_` is also a prefix of `decoder_pred.`.
    names = {"lm_head.": "head.", "decoder_pred.": "head.", "decoder_": "decoder.", "mask_token": "mask_token"}
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        for official, ours in names.items():
            if key.startswith(official):
                out[key.replace(official, ours, 1)] = value.flatten() if key == "mask_token" else value
                break
    return out


def _split(key: str) -> tuple[str | None, str]:
    """Split a key into prefix and rest. The prefix is empty in an encoder alone, and None outside the vision tower."""
    for prefix in (TRUNK, VISUAL):
        if key.startswith(prefix):
            return prefix, key.removeprefix(prefix)
    return (None, key) if key.startswith(("text.", "logit_")) else ("", key)


def _replaced(name: str, rules: list[tuple[str, str]]) -> str:
    """Apply the first rule that matches a name."""
    for old, new in rules:
        if old in name or name.startswith(old):
            return name.replace(old, new, 1)
    return name


def _rotary_tables(trunk: Any, prefix: str) -> dict[str, Tensor]:
    """Compute cos and sin of the rotary positions, (N, head width) each, for the encoder and again for each block."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return {}
    if not isinstance(rope, RotaryEmbeddingCat) or rope.pos_embed is None:
        raise UserError("its rotary positions are not EVA-02's")
    sin, cos = rope.get_embed().float().chunk(2, dim=-1)
    prefixes = ["rope.", *(f"blocks.{block}.attn.rope." for block in range(len(trunk.blocks)))]
    out: dict[str, Tensor] = {}
    for owner in prefixes:
        out[f"{prefix}{owner}freqs_cos"] = cos
        out[f"{prefix}{owner}freqs_sin"] = sin
    return out
