"""Build transformers' EoMT, and our segmenter with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.queries import QueriesHead, QuerySegmenter

_HEAD = {
    "queries": "query.weight",
    "classify": "class_predictor",
    "embed.0": "mask_head.fc1",
    "embed.2": "mask_head.fc2",
    "embed.4": "mask_head.fc3",
}
_UPSCALE = {"enlarge": "conv1", "smooth": "conv2", "norm": "layernorm2d"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of its loss."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    queries: int
    classes: int
    blocks: int
    points: int

    @property
    def doublings(self) -> int:
        return (self.patch // 4).bit_length() - 1


def their_model(sizes: Sizes, std: float) -> Any:
    """Build transformers' model with random weights."""
    config = EomtConfig(
        hidden_size=sizes.width, num_hidden_layers=sizes.depth, num_attention_heads=sizes.heads, image_size=sizes.side,
        patch_size=sizes.patch, num_upscale_blocks=sizes.doublings, num_blocks=sizes.blocks, num_queries=sizes.queries,
        num_register_tokens=2, train_num_points=sizes.points, id2label={n: str(n) for n in range(sizes.classes)},
    )  # fmt: skip
    model = EomtForUniversalSegmentation(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def our_model(theirs: Any, sizes: Sizes) -> QuerySegmenter:
    """Build our model with the weights of transformers' model."""
    vit = VisionTransformer(
        img_size=sizes.side, patch_size=sizes.patch, embed_dim=sizes.width, depth=sizes.depth, num_heads=sizes.heads,
        init_values=1.0, reg_tokens=2, no_embed_class=True, num_classes=0, global_pool="token",
    )  # fmt: skip
    weights = {}
    for key, value in theirs.state_dict().items():
        name = key.replace("embeddings.patch_embeddings.projection", "patch_embed.proj").replace("layers.", "blocks.")
        name = name.replace("embeddings.register_tokens", "reg_token").replace("embeddings.cls_token", "cls_token")
        name = name.replace("attention.out_proj", "attn.proj").replace("layernorm.", "norm.")
        weights[name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")] = value
    weights["pos_embed"] = weights.pop("embeddings.position_embeddings.weight")[None]
    for block in range(sizes.depth):
        for part in ("weight", "bias"):
            projections = [f"blocks.{block}.attention.{letter}_proj.{part}" for letter in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{part}"] = torch.cat([weights.pop(name) for name in projections])
    vit.load_state_dict({key: weights[key] for key in vit.state_dict()})
    head = QueriesHead(sizes.width, sizes.classes, sizes.queries, sizes.patch)
    names = dict(_HEAD)
    for level in range(sizes.doublings):
        names |= {f"upscale.{level}.{ours}": f"upscale_block.block.{level}.{one}" for ours, one in _UPSCALE.items()}
    renamed = {}
    for ours, other in names.items():
        for part in ("", ".weight", ".bias"):
            if f"{other}{part}" in weights:
                renamed[f"{ours}{part}"] = weights[f"{other}{part}"]
    head.load_state_dict(renamed)
    return QuerySegmenter(DenseEncoder(vit), head, sizes.blocks)
