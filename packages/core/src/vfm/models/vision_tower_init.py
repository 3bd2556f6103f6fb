"""Initialising the vision tower of a CLIP model from a pretrained vision encoder, with every key accounted for.

Both sides have timm's layout, so most keys are the same. Rules cover the differences: the final norm comes before or
after pooling (`norm`, `fc_norm`), position embeddings and patch kernels are resized to the tower's grid, the head is
the CLIP projection and new, and so is the norm that EVA-CLIP adds inside the attention. Any other difference is an
error.

Source: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389), section 2; the rules are those of its released trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.preprocess import Preprocess, Triple
from vfm.models.vision import VISION_WEIGHTS_FILE, build_vision, vision_preprocess
from vfm.models.weight_transfer import KeyReport, PatchResize, TransferRules, transfer_weights
from vfm.models.weights import load_state_dict

_DROPPED = {
    "head.": "the encoder's own head; the CLIP projection replaces it",
    "lm_head.": "predicts masked features, used in pre-training only",
    "mask_token": "replaces masked patches, used in pre-training only",
    "rope.": "recomputed from the grid",
}
_NEW = {
    "head.": "the CLIP projection",
    "attn.norm.": "EVA-CLIP's norm inside the attention, absent in pre-training",
}


def init_vision_tower(
    vision: VisionCheckpoint | Path | Mapping[str, Tensor],
    clip: ClipModel,
    *,
    patch_resize: PatchResize = "pinv",
    take_normalization: bool = False,
) -> KeyReport:
    """Load a vision encoder's weights into the vision tower of a CLIP model, in place.

    Weights show neither the activation nor the mean and std of the images, which a checkpoint has: these are checked.

    Args:
        vision: a checkpoint in timm's layout, or its state dict.
        clip: a CLIP model whose vision tower is a timm encoder (`visual.trunk`) of the same widths and depth.
        patch_resize: how patch kernels and position embeddings are resized: `pinv` as in timm (FlexiViT's
            pseudo-inverse, which keeps the response to a resized image, and antialiased positions), or `bicubic` as in
            the official EVA scripts.
        take_normalization: use the mean and std of the checkpoint's images instead of the CLIP model's.

    Returns:
        What became of every key of the checkpoint and of the tower.

    Raises:
        UserError: the tower is not a timm encoder, its activation, mean or std differs from the encoder's, or a key is
            missing, unknown or of another shape; nothing is loaded then.
    """
    visual, report = timm_vision_tower(clip), KeyReport()
    if isinstance(vision, VisionCheckpoint):
        check_activation(vision.architecture, clip)
        with torch.device("meta"):  # only its configuration is needed
            own = vision_preprocess(build_vision(f"local-dir:{vision.path}"))
        if take_normalization:
            clip.preprocess = clip.preprocess.model_copy(update={"mean": own.mean, "std": own.std})
        check_normalization(vision.architecture, own, clip)
    rules = TransferRules(_DROPPED, _NEW, patch_resize=patch_resize, where=clip.name)
    transfer_weights(_read(vision), visual.trunk, rules, report)
    report.new.update({f"visual.head.{key}": "the CLIP projection" for key in visual.head.state_dict()})
    return report


def timm_vision_tower(clip: ClipModel) -> TimmModel:
    """Return the vision tower of a CLIP model, checked to be a timm encoder (its `trunk`).

    Raises:
        UserError: the vision tower is open_clip's own.
    """
    if not isinstance(clip.module.visual, TimmModel):
        raise UserError(
            f"{clip.name}: its vision tower is open_clip's own; expected a CLIP model whose tower is a timm encoder, "
            "such as EVA02-Nano-4-32"
        )
    return clip.module.visual


def check_activation(architecture: str, clip: ClipModel) -> None:
    """Check that encoder and tower both use QuickGELU or both use GELU, which shapes cannot show.

    Raises:
        UserError: they differ.
    """
    tower = str(clip.config["vision_cfg"]["timm_model_name"])
    quick = "quickgelu" in architecture
    if quick != ("quickgelu" in tower):
        names = {True: "QuickGELU", False: "GELU"}
        raise UserError(
            f"{clip.name}: the encoder {architecture} was trained with {names[quick]}, the tower {tower} has"
            f" {names[not quick]}"
        )


def check_normalization(architecture: str, own: Preprocess, clip: ClipModel) -> None:
    """Check that encoder and CLIP model normalise images by the same mean and std, which weights cannot show.

    Raises:
        UserError: they differ.
    """
    for name, expected, found in (
        ("mean", own.mean, clip.preprocess.mean),
        ("std", own.std, clip.preprocess.std),
    ):
        if any(abs(a - b) > 1e-3 for a, b in zip(expected, found, strict=True)):
            raise UserError(
                f"{clip.name}: the encoder {architecture} was trained on images of {name} {_triple(expected)}, the"
                f" model has {_triple(found)}; set vision: {{normalization: encoder}} to take the encoder's"
            )


def _triple(values: Triple) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _read(vision: VisionCheckpoint | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(vision, Mapping):
        return dict(vision)
    return load_state_dict((vision.path if isinstance(vision, VisionCheckpoint) else vision) / VISION_WEIGHTS_FILE)
