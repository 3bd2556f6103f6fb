"""The hand-over: a pre-trained vision encoder goes into the vision tower of a CLIP model, every key accounted for.

Both sides are timm's layout, so most keys carry over. What differs is said by rules: the final norm stands before or
after pooling (`norm`, `fc_norm`), positions and patch kernels follow the grid, the head is the CLIP projection
and new, and so is EVA-CLIP's norm inside the attention. Any other miss is an error.

Source: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389), section 2; the rules are those of its released trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from open_clip.timm_model import TimmModel
from torch import Tensor

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.fitting import KeyReport, PatchResize, Rules, fit
from vfm.models.vision import WEIGHTS_FILE
from vfm.models.weights import load_state_dict

_DROPPED = {
    "head.": "the encoder's own head; the CLIP projection takes its place",
    "lm_head.": "predicts masked features, used in pre-training only",
    "mask_token": "stands for masked patches, used in pre-training only",
    "rope.": "rebuilt from the grid",
}
_NEW = {
    "head.": "the CLIP projection",
    "attn.norm.": "EVA-CLIP's norm inside the attention, which pre-training has not",
}


def hand_over(
    vision: VisionCheckpoint | Path | Mapping[str, Tensor], clip: ClipModel, *, patch_resize: PatchResize = "pinv"
) -> KeyReport:
    """Loads a vision encoder's weights into the vision tower of a CLIP model, in place.

    Args:
        vision: a checkpoint in timm's layout, or its state dict.
        clip: a CLIP model whose vision tower is a timm encoder (`visual.trunk`) of the same widths and depth.
        patch_resize: how patch kernels and positions of another size are made: `pinv` as timm does (FlexiViT's
            pseudo-inverse, which keeps the response to a resized image, and antialiased positions), or `bicubic` as the
            official EVA scripts do.

    Returns:
        What became of every key, of the checkpoint and of the tower.

    Raises:
        UserError: the tower is not a timm encoder, it has another activation than the encoder was trained with, or a
            key is missing, unknown or of another shape; nothing is loaded.
    """
    visual, report = timm_tower(clip), KeyReport()
    if isinstance(vision, VisionCheckpoint):
        check_activation(vision.architecture, clip)
    fit(_read(vision), visual.trunk, Rules(_DROPPED, _NEW, patch_resize=patch_resize, where=clip.name), report)
    report.new.update({f"visual.head.{key}": "the CLIP projection" for key in visual.head.state_dict()})
    return report


def timm_tower(clip: ClipModel) -> TimmModel:
    """The vision tower of a CLIP model, where it is a timm encoder (its `trunk`).

    Raises:
        UserError: its vision tower is open_clip's own.
    """
    if not isinstance(clip.module.visual, TimmModel):
        raise UserError(
            f"{clip.name}: its vision tower is open_clip's own; a vision encoder goes into a CLIP model whose tower is "
            "a timm encoder, such as EVA02-Nano-4-32"
        )
    return clip.module.visual


def check_activation(architecture: str, clip: ClipModel) -> None:
    """Refuses an encoder with QuickGELU for a tower with GELU, and the other way round: no shape tells them apart.

    Raises:
        UserError: they differ.
    """
    tower = str(clip.config["vision_cfg"]["timm_model_name"])
    if ("quickgelu" in architecture) != ("quickgelu" in tower):
        names = {True: "QuickGELU", False: "GELU"}
        trained = "quickgelu" in architecture
        raise UserError(
            f"{clip.name}: the encoder {architecture} was trained with {names[trained]}, the tower {tower} has"
            f" {names[not trained]}"
        )


def _read(vision: VisionCheckpoint | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(vision, Mapping):
        return dict(vision)
    return load_state_dict((vision.path if isinstance(vision, VisionCheckpoint) else vision) / WEIGHTS_FILE)
