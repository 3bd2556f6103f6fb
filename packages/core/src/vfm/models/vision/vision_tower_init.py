"""Initialisation of a CLIP model's vision tower from a pretrained vision encoder, with a report on every key.

Both sides have timm's layout, so most keys are the same. Rules cover the differences. The final norm comes before or
after pooling (`norm`, `fc_norm`). Position embeddings and patch kernels are resized to the tower's grid. The head is
the CLIP projection and new, and so is the norm that EVA-CLIP adds inside the attention. Any other difference is an
error.

Source: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389), section 2. The rules follow its released trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from vfm.base import UserError
from vfm.interfaces import VisionCheckpoint
from vfm.models.clip.clip import ClipModel
from vfm.models.preprocess import Preprocess, Triple
from vfm.models.vision.vision import VISION_WEIGHTS_FILE, build_vision, vision_preprocess
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

    Activation, attention heads, rotary positions, and the mean and std of the images do not show in the weights. A
    checkpoint has them, and they are checked.

    Args:
        vision: A checkpoint in timm's layout, or its state dict.
        clip: A CLIP model whose vision tower is a timm encoder (`visual.trunk`) of the same widths and depth.
        patch_resize: How patch kernels and position embeddings are resized. `pinv` is as in timm: FlexiViT's
            pseudo-inverse keeps the response to a resized image, and positions are antialiased. `bicubic` is as in the
            official EVA scripts.
        take_normalization: Use the mean and std of the checkpoint's images instead of the CLIP model's.

    Returns:
        What happened to every key of the checkpoint and of the tower.

    Raises:
        UserError: If the tower is not a timm encoder, it computes something else with the same weights, its mean or std
            differs from the encoder's, or a key is missing, unknown or of another shape. Nothing is loaded then.
    """
    visual = timm_vision_tower(clip)
    report = KeyReport()
    if isinstance(vision, VisionCheckpoint):
        with torch.device("meta"):  # only its configuration is needed
            encoder = build_vision(f"local-dir:{vision.path}")
        check_same_computation(vision.architecture, encoder, clip)
        preprocess = vision_preprocess(encoder)
        if take_normalization:
            clip.preprocess = clip.preprocess.model_copy(update={"mean": preprocess.mean, "std": preprocess.std})
        check_normalization(vision.architecture, preprocess, clip)
    rules = TransferRules(_DROPPED, _NEW, patch_resize=patch_resize, where=clip.name)
    file = vision.path / VISION_WEIGHTS_FILE if isinstance(vision, VisionCheckpoint) else None
    transfer_weights(_read(vision), visual.trunk, rules, report, file=file)
    for key in visual.head.state_dict():
        report.new[f"visual.head.{key}"] = "the CLIP projection"
    return report


def timm_vision_tower(clip: ClipModel) -> TimmModel:
    """Get the vision tower of a CLIP model, and check that it is a timm encoder (its `trunk`).

    Raises:
        UserError: If the vision tower is open_clip's own.
    """
    if not isinstance(clip.module.visual, TimmModel):
        raise UserError(
            f"{clip.name}: its vision tower is open_clip's own; expected a CLIP model whose tower is a timm encoder, "
            "such as EVA02-Nano-4-32"
        )
    return clip.module.visual


def check_same_computation(architecture: str, encoder: nn.Module, clip: ClipModel) -> None:
    """Check that encoder and tower compute the same with equal weights, as far as the weights do not show it.

    Args:
        architecture: The encoder's timm name, for the error.
        encoder: A timm vision transformer. It may be on the meta device.
        clip: The CLIP model. Its vision tower is a timm encoder.

    Raises:
        UserError: If their activations, attention heads, kinds of blocks or rotary positions differ.
    """
    trunk: Any = timm_vision_tower(clip).trunk
    tower = str(clip.config["vision_cfg"]["timm_model_name"])
    encoder_facts = _hidden_facts(encoder)
    tower_facts = _hidden_facts(trunk)
    different = [name for name in encoder_facts if encoder_facts[name] != tower_facts[name]]
    if not _same_function(_activation(encoder), _activation(trunk)):
        different.insert(0, "activation")
        encoder_facts["activation"] = type(_activation(encoder)).__name__
        tower_facts["activation"] = type(_activation(trunk)).__name__
    if different:
        name = different[0]
        raise UserError(
            f"{clip.name}: the encoder {architecture} was trained with {name} {encoder_facts[name]}, the tower {tower}"
            f" has {tower_facts[name]}"
        )


def _hidden_facts(model: Any) -> dict[str, Any]:
    """Collect the facts that decide a transformer's output in addition to its weights and its activation."""
    block = next(iter(getattr(model, "blocks", ())), None)
    rope = getattr(model, "rope", None)
    attention = getattr(block, "attn", None)
    return {
        "num_heads": getattr(attention, "num_heads", None),
        "blocks of type": type(block).__name__,
        "rotary positions of type": type(rope).__name__,
        "rotary positions of temperature": getattr(rope, "temperature", None),
        "rotary positions in order": getattr(rope, "grid_indexing", None),
        "rotate_half": getattr(attention, "rotate_half", None),
    }


def _activation(model: Any) -> nn.Module | None:
    """Find the activation of the first block's MLP.

    The result is None if it has none, or one with weights.
    """
    block = next(iter(getattr(model, "blocks", ())), None)
    activation: nn.Module | None = getattr(getattr(block, "mlp", None), "act", None)
    if activation is None or list(activation.parameters()):
        return None
    return activation


def _same_function(first: nn.Module | None, second: nn.Module | None) -> bool:
    """Compare activations by their values.

    A function has several classes, and an approximation of GELU counts as GELU.
    """
    if first is None or second is None:
        return first is second
    x = torch.linspace(-4, 4, 65)
    # Far above rounding, and far below the difference of two activations or norms.
    return torch.allclose(first(x.clone()), second(x.clone()), rtol=0, atol=1e-3)


def check_normalization(architecture: str, preprocess: Preprocess, clip: ClipModel) -> None:
    """Check that encoder and CLIP model normalise images by the same mean and std. Weights cannot show this.

    Args:
        architecture: The encoder's timm name, for the error.
        preprocess: The encoder's preprocessing.
        clip: The CLIP model.

    Raises:
        UserError: If mean or std differ.
    """
    for name, expected, actual in (
        ("mean", preprocess.mean, clip.preprocess.mean),
        ("std", preprocess.std, clip.preprocess.std),
    ):
        if any(abs(a - b) > 1e-3 for a, b in zip(expected, actual, strict=True)):
            raise UserError(
                f"{clip.name}: the encoder {architecture} was trained on images of {name} {_triple(expected)}, the"
                f" model has {_triple(actual)}; set vision: {{normalization: encoder}} to take the encoder's"
            )


def _triple(values: Triple) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _read(vision: VisionCheckpoint | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(vision, Mapping):
        return dict(vision)
    folder = vision.path if isinstance(vision, VisionCheckpoint) else vision
    return load_state_dict(folder / VISION_WEIGHTS_FILE)
