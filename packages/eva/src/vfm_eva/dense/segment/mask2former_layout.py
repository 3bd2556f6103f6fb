"""Map the weight names of EVA-01's released segmenters (mmsegmentation's layout) to the names of `Mask2FormerHead`.

    backbone.blocks.N.attn.relative_position_bias_table   adapter.bias.tables.N
    backbone.{spm,interactions,level_embed,up,norm1..4}   adapter
    backbone                                              the encoder, in the layouts of `vfm.models`
    decode_head.pixel_decoder                             pixel_decoder, in transformers' names
    decode_head.{transformer_decoder,query_*,mask_embed}  transformer, in transformers' names
    decode_head.cls_embed                                 classify

Source: the public EVA repository. The names of Mask2Former's layers are mmdetection's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

ADAPTER = re.compile(
    r"backbone\.((spm|interactions|up|norm[1-4])\..*|level_embed|blocks\.\d+\.attn\.relative_position_.*)"
)
RELATIVE = ".relative_position_bias_table"
_JOINED = re.compile(r"(.*\.attentions\.1\.attn)\.in_proj_(weight|bias)")


def _numbered(name: str, shift: int) -> Callable[[re.Match[str]], str]:
    """Build a replacement for `re.sub` that formats `name` with the matched number plus `shift`."""
    return lambda match: name.format(int(match[1]) + shift)


_ADAPTER: Renames = (
    (r"^blocks\.(\d+)\.attn\.relative_position_bias_table", r"bias.tables.\1"),
    (r"^level_embed", "levels"),
    (r"^up\.", "upsample."),
    (r"^norm(\d)", _numbered("norms.{}", -1)),
    (r"^spm\.conv(\d)", _numbered("prior.stages.{}", -2)),
    (r"^spm\.fc(\d)", _numbered("prior.projections.{}", -1)),
    (r"^spm\.", "prior."),
    (r"^interactions\.(\d)\.injector\.", r"injectors.\1."),
    (r"^interactions\.(\d)\.extractor\.", r"extractors.\1.0."),
    (r"^interactions\.(\d)\.extra_extractors\.(\d)", lambda match: f"extractors.{match[1]}.{int(match[2]) + 1}"),
    (r"\.ffn\.dwconv\.dwconv\.", ".mix."),
    (r"\.ffn\.", "."),
)
_FEED_FORWARD: Renames = ((r"\.ffns\.0\.layers\.0\.0\.", ".fc1."), (r"\.ffns\.0\.layers\.1\.", ".fc2."))
_PIXEL_DECODER: Renames = (
    *_FEED_FORWARD,
    (r"\.attentions\.0\.", ".self_attn."),
    (r"\.norms\.0\.", ".self_attn_layer_norm."),
    (r"\.norms\.1\.", ".final_layer_norm."),
    (r"^level_encoding\.weight", "level_embed"),
    (r"^mask_feature\.", "mask_projection."),
    (r"^input_convs\.", "input_projections."),
    (r"^lateral_convs\.0\.", "adapter_1."),
    (r"^output_convs\.0\.", "layer_1."),
    (r"\.conv\.", ".0."),
    (r"\.gn\.", ".1."),
)
_TRANSFORMER: Renames = (
    *_FEED_FORWARD,
    (r"\.attentions\.0\.attn\.", ".cross_attn."),
    (r"\.attentions\.1\.attn\.", ".self_attn."),
    (r"\.norms\.0\.", ".cross_attn_layer_norm."),
    (r"\.norms\.1\.", ".self_attn_layer_norm."),
    (r"\.norms\.2\.", ".final_layer_norm."),
    (r"^transformer_decoder\.post_norm\.", "decoder.layernorm."),
    (r"^transformer_decoder\.", "decoder."),
    (r"^query_embed\.", "queries_embedder."),
    (r"^query_feat\.", "queries_features."),
    (r"^mask_embed\.(\d)", lambda match: f"decoder.mask_predictor.mask_embedder.{int(match[1]) // 2}.0"),
)
_PARTS: Sequence[tuple[str, str, Renames]] = (  # official prefix, our prefix, renames of the rest; the first match wins
    ("backbone.", "adapter.", _ADAPTER),
    ("decode_head.cls_embed.", "classify.", ()),
    ("decode_head.pixel_decoder.", "pixel_decoder.", _PIXEL_DECODER),
    ("decode_head.", "transformer.", _TRANSFORMER),
)


def head_name(key: str) -> str:
    """Convert an official weight name to its name in `Mask2FormerHead`. Unknown names are not changed."""
    for official, ours, names in _PARTS:
        if key.startswith(official):
            name = key.removeprefix(official)
            for pattern, new in names:
                name = re.sub(pattern, new, name)
            return ours + name
    return key


def split_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joined query, key and value weights of self-attention into three tensors."""
    separate: dict[str, Tensor] = {}
    for key, value in tensors.items():
        joined = _JOINED.fullmatch(key)
        if joined:
            for part, weight in zip("qkv", value.chunk(3), strict=True):
                separate[f"{joined[1]}.{part}_proj.{joined[2]}"] = weight
        else:
            separate[key] = value
    return separate
