"""Initial encoders of video models: convert any checkpoint to timm's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vfm.models import ClipModel, build_vision, load_clip, save_vision
from vfm.plugin import ClipCheckpoint, UserError, VideoClassifier, VisionCheckpoint

CLIP_ARCHITECTURES = {"GELU": "vit_base_patch16_clip_224", "QuickGELU": "vit_base_patch16_clip_quickgelu_224"}


def image_checkpoint(source: VisionCheckpoint | ClipCheckpoint | VideoClassifier, folder: Path) -> VisionCheckpoint:
    """Load the image encoder of a checkpoint. A CLIP model's tower is written to `folder` in timm's layout.

    Raises:
        UserError: If a CLIP model's tower cannot be converted to timm's layout.
    """
    if isinstance(source, VisionCheckpoint):
        return source
    if isinstance(source, VideoClassifier):
        return VisionCheckpoint.load(source.path / source.encoder, verify=False)
    return save_vision(clip_tower(load_clip(source, torch.device("cpu"))), folder)


def clip_tower(clip: ClipModel) -> nn.Module:
    """Convert the vision tower of a CLIP model to a timm encoder without a head, on torch's default device.

    Raises:
        UserError: If it is neither a timm model nor open_clip's plain vision transformer.
    """
    visual: Any = clip.module.visual
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        trunk.reset_classifier(0)
        return trunk  # type: ignore[no-any-return]
    if not isinstance(visual, OpenClipViT) or visual.attn_pool is not None:
        raise UserError(f"{clip.name}: its vision tower is no plain vision transformer, so it takes no videos")
    block: Any = visual.transformer.resblocks[0]
    mlp: Any = block.mlp
    activation = "QuickGELU" if type(mlp.gelu).__name__ == "QuickGELU" else "GELU"
    model = build_vision(
        {
            "architecture": CLIP_ARCHITECTURES[activation],
            "img_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "embed_dim": visual.conv1.out_channels,
            "depth": len(visual.transformer.resblocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": mlp.c_fc.out_features / mlp.c_fc.in_features,
            "num_classes": 0,
        }
    )
    # The layout from which timm's filter converts open_clip's weights.
    state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    weights = checkpoint_filter_fn(state, model)
    weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{clip.name}: its vision tower has no layout of timm's: {line}") from None
    config: Any = model.pretrained_cfg
    model.pretrained_cfg = {**config, "mean": clip.preprocess.mean, "std": clip.preprocess.std}  # type: ignore[assignment]
    return model
