"""The hand-over: a pre-trained vision encoder goes into the vision tower of a CLIP model, every key accounted for.

Both sides are timm's layout, so most keys carry over. What differs is said by rules: the final norm stands before or
after pooling (`norm`, `fc_norm`), positions and patch kernels follow the grid, the head is the CLIP projection
and new, and so is EVA-CLIP's norm inside the attention. Any other miss is an error.

Source: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389), section 2; the rules are those of its released trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from open_clip.timm_model import TimmModel
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor
from torch.nn import functional as F

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.vision import WEIGHTS_FILE
from vfm.models.weights import load_state_dict
from vfm.panels import TablePanel

PatchResize = Literal["bicubic", "pinv"]
_NORMS = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}
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


@dataclass
class KeyReport:
    """What became of every key of a state dict. `renamed` and `resized` say to what, `new` and `dropped` say why."""

    taken: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line of counts, such as `52 taken, 2 renamed, 1 resized, 2 new, 0 dropped`."""
        parts = ("taken", "renamed", "resized", "new", "dropped")
        return ", ".join(f"{len(getattr(self, part))} {part}" for part in parts)

    def panel(self, title: str = "Weights handed over") -> TablePanel:
        """A table for the report: counts of what was taken as it was, and each key that was not."""
        rows: list[list[str | float | int | None]] = [["taken", f"{len(self.taken)} keys", "as they were"]]
        for what in ("renamed", "resized", "new", "dropped"):
            rows += [[what, key, note] for key, note in getattr(self, what).items()]
        return TablePanel(title=title, columns=["what", "key", "to, or why"], rows=rows)


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
        UserError: the tower is not a timm encoder, or a key is missing, unknown or of another shape; nothing is loaded.
    """
    visual, report = timm_tower(clip), KeyReport()
    fitted = _fit(_read(vision), visual.trunk, report, patch_resize, clip.name)
    visual.trunk.load_state_dict(fitted, strict=False)
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


def _read(vision: VisionCheckpoint | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(vision, Mapping):
        return dict(vision)
    return load_state_dict((vision.path if isinstance(vision, VisionCheckpoint) else vision) / WEIGHTS_FILE)


def _fit(
    source: dict[str, Tensor], trunk: Any, report: KeyReport, patch_resize: PatchResize, name: str
) -> dict[str, Tensor]:
    """The source's tensors under the trunk's names and at its sizes; the report says what became of each."""
    wanted: dict[str, Tensor] = trunk.state_dict()
    fitted: dict[str, Tensor] = {}
    for key, tensor in source.items():
        if why := _reason(key, _DROPPED):
            report.dropped[key] = why
            continue
        target = key if key in wanted else _other_norm(key)
        if target not in wanted or (target != key and target in source):
            raise UserError(f"{name}: the encoder has {key}, its vision tower has not; do depth and block type agree?")
        fitted[target] = _resize(target, tensor, wanted[target], trunk, patch_resize)
        if fitted[target].shape != wanted[target].shape:
            shapes = f"{tuple(tensor.shape)}, its vision tower wants {tuple(wanted[target].shape)}"
            raise UserError(f"{name}: {key} of the encoder is {shapes}")
        if target != key:
            report.renamed[key] = target
        elif tensor.shape != fitted[target].shape:
            report.resized[key] = f"{list(tensor.shape)} to {list(fitted[target].shape)}"
        else:
            report.taken.append(key)
    for key in (key for key in wanted if key not in fitted):
        if not (why := _reason(key, _NEW)):
            raise UserError(f"{name}: its vision tower has {key}, the encoder has not; do depth and block type agree?")
        report.new[key] = why
    return fitted


def _reason(key: str, rules: Mapping[str, str]) -> str:
    """The rule for a key: by its beginning, or for a part of a block by what follows the block's number."""
    return next((why for rule, why in rules.items() if key.startswith(rule) or f".{rule}" in key), "")


def _other_norm(key: str) -> str:
    """The final norm before pooling for the one after it, and the other way round."""
    return _NORMS.get(key) or next((before for before, after in _NORMS.items() if after == key), key)


def _resize(key: str, tensor: Tensor, wanted: Tensor, trunk: Any, patch_resize: PatchResize) -> Tensor:
    if tensor.shape == wanted.shape:
        return tensor
    if key == "pos_embed" and tensor.shape[2:] == wanted.shape[2:]:
        prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
        resampled: Tensor = resample_abs_pos_embed(
            tensor, list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=patch_resize == "pinv"
        )
        return resampled
    if key == "patch_embed.proj.weight" and tensor.shape[:2] == wanted.shape[:2]:
        return resize_patch_kernel(tensor, (wanted.shape[2], wanted.shape[3]), patch_resize)
    return tensor


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int], how: PatchResize) -> Tensor:
    """A patch embedding's kernel at another patch size, e.g. 14 to 16 and back.

    Args:
        kernel: (D, 3, P, P).
        how: `pinv` (FlexiViT, arXiv:2212.08013, as timm) or `bicubic` (EVA's `interpolate_patch_14to16.py`).

    Returns:
        (D, 3, *size).
    """
    if how == "bicubic":
        return F.interpolate(kernel.float(), size=size, mode="bicubic", align_corners=False).to(kernel.dtype)
    resampled: Tensor = resample_patch_embed(kernel, list(size))
    return resampled
