"""Loading of a state dict into a module whose keys or shapes differ, with a report on every key.

It is used to initialise a vision tower from an encoder (`vision_tower_init`), to read the official EVA files
(`eva_import`), and by the plugin packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor
from torch.nn import functional as F

from vfm.base import UserError, drop_keys
from vfm.interfaces import TablePanel
from vfm.models.stored_weights import StoredWeight, map_tensors

PatchResize = Literal["bicubic", "pinv"]
TRUNK = "visual.trunk."  # prefix of a timm encoder inside an open_clip model
SHOWN = 8  # keys per reason that a report lists as new or dropped
_NORMS = {"norm.": "fc_norm."}  # the final norm before pooling -> the norm after pooling


@dataclass
class KeyReport:
    """Report on every key of a state dict.

    `renamed` and `resized` map a key to its new name or shape. `new` and `dropped` map a key to the reason.
    """

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

    def panel(self, title: str = "Transferred weights") -> TablePanel:
        """Build a table for the report with the number of unchanged keys, and the changed keys (the first of many)."""
        rows: list[list[str | float | int | None]] = [["taken", f"{len(self.taken)} keys", "unchanged"]]
        for status in ("renamed", "resized"):
            for key, note in getattr(self, status).items():
                rows.append([status, key, note])
        for status in ("new", "dropped"):
            by_reason: dict[str, list[str]] = {}
            for key, reason in getattr(self, status).items():
                by_reason.setdefault(reason, []).append(key)
            for reason, keys in by_reason.items():
                for key in keys[:SHOWN]:
                    rows.append([status, key, reason])
                if len(keys) > SHOWN:
                    rows.append([status, f"{len(keys) - SHOWN} more keys", reason])
        return TablePanel(title=title, columns=["status", "key", "new name, shape or reason"], rows=rows)


@dataclass(frozen=True)
class TransferRules:
    """Allowed differences between a state dict and a module.

    The keys of `dropped` and `new` match the beginning of a key, or the part of a key after a block's number.
    """

    dropped: Mapping[str, str]  # keys of the state dict to leave out, with the reason
    new: Mapping[str, str]  # keys of the module that the state dict may lack, with the reason
    rename: Callable[[str], str] = str  # key of the state dict -> key of the module
    patch_resize: PatchResize = "pinv"
    where: str = ""  # first words of an error
    source: str = "the encoder"  # name of the state dict in errors
    target: str = "its vision tower"  # name of the module in errors


def transfer_weights(
    state_dict: Mapping[str, Tensor], module: Any, rules: TransferRules, report: KeyReport, *, file: Path | None = None
) -> None:
    """Load a state dict into a module in place and fill the report.

    Besides the renaming by the rules, the final norm before pooling (`norm`) and the norm after pooling (`fc_norm`)
    are exchanged where the module has only the other one.

    Args:
        state_dict: Tensors by key.
        module: A timm encoder, or the module of an open_clip model.
        rules: Allowed differences.
        report: Filled in place with what happened to every key.
        file: safetensors file with the state dict. Weights that are not resized may stay there
            (`vfm.train.weights_from_first`).

    Raises:
        UserError: If a key is missing, unknown or of another shape. Nothing is loaded then.
    """
    expected: dict[str, Tensor] = module.state_dict()
    if hasattr(module, "visual") and hasattr(module.visual, "trunk"):
        trunk = module.visual.trunk
    else:
        trunk = module
    for key in state_dict:
        reason = _reason(key, rules.dropped)
        if reason:
            report.dropped[key] = reason
    renamed = {key: rules.rename(key) for key in state_dict if key not in report.dropped}
    loaded: dict[str, Tensor] = {}
    stored: dict[str, StoredWeight] = {}
    for key, name in renamed.items():
        target = name if name in expected else _other_norm(name)
        # A state dict with both norms must not fill one norm of the module twice.
        if target not in expected or (target != name and target in renamed.values()):
            raise UserError(
                f"{rules.where}: {rules.source} has {key}, {rules.target} does not; do depth and block type agree?"
            )
        tensor = state_dict[key]
        loaded[target] = _resize(target, tensor, expected[target], trunk, rules.patch_resize)
        if loaded[target].shape != expected[target].shape:
            shapes = f"{tuple(tensor.shape)}, {rules.target} expects {tuple(expected[target].shape)}"
            raise UserError(f"{rules.where}: {key} of {rules.source} is {shapes}")
        if file and loaded[target] is tensor:
            stored[target] = StoredWeight(file, key, tensor)
        if target != key:
            report.renamed[key] = target
        if tensor.shape != loaded[target].shape:
            report.resized[key] = f"{list(tensor.shape)} to {list(loaded[target].shape)}"
        elif target == key:
            report.taken.append(key)
    for key in expected:
        if key in loaded:
            continue
        reason = _reason(key, rules.new)
        if not reason:
            raise UserError(
                f"{rules.where}: {rules.target} has {key}, {rules.source} does not; do depth and block type agree?"
            )
        report.new[key] = reason
    mapped = map_tensors(module, stored)
    # The loops above are the strict check.
    module.load_state_dict(drop_keys(loaded, mapped), strict=False)


def _resize(key: str, tensor: Tensor, expected: Tensor, trunk: Any, method: PatchResize) -> Tensor:
    """Resize position embeddings or a patch kernel of a timm encoder. Any other tensor is returned unchanged."""
    key = key.removeprefix(TRUNK)
    if tensor.shape == expected.shape:
        return tensor
    if key == "pos_embed" and tensor.shape[2:] == expected.shape[2:]:
        # Without an embedding of the class token, all positions belong to patches.
        prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
        resampled: Tensor = resample_abs_pos_embed(
            tensor, list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=method == "pinv"
        )
        return resampled
    if key == "patch_embed.proj.weight" and tensor.shape[:2] == expected.shape[:2]:
        return resize_patch_kernel(tensor, (expected.shape[2], expected.shape[3]), method)
    return tensor


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int], method: PatchResize) -> Tensor:
    """Resize the kernel of a patch embedding to another patch size, e.g. from 14 to 16.

    Args:
        kernel: (D, 3, P, P).
        size: Height and width of the new patches.
        method: `pinv` (FlexiViT, arXiv:2212.08013, as in timm) or `bicubic` (EVA's `interpolate_patch_14to16.py`).

    Returns:
        (D, 3, *size).
    """
    if method == "bicubic":
        return F.interpolate(kernel.float(), size=size, mode="bicubic", align_corners=False).to(kernel.dtype)
    resampled: Tensor = resample_patch_embed(kernel, list(size))
    return resampled


def _reason(key: str, rules: Mapping[str, str]) -> str:
    """Look up the reason of the first rule that matches a key; empty if none does."""
    for rule, reason in rules.items():
        if key.startswith(rule) or f".{rule}" in key:
            return reason
    return ""


def _other_norm(key: str) -> str:
    """Convert the key of the norm before pooling to the norm after it, and vice versa. Other keys stay unchanged."""
    name = key.removeprefix(TRUNK)
    prefix = key.removesuffix(name)
    for before, after in _NORMS.items():
        for old, new in ((before, after), (after, before)):
            if name.startswith(old):
                return f"{prefix}{new}{name.removeprefix(old)}"
    return key
