"""A state dict fitted to a module: every key of both sides is taken, renamed, resized, dropped or new, or a mistake.

`hand_over` brings an encoder into a CLIP model by it, `eva_import` a file of EVA's into either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor
from torch.nn import functional as F

from vfm.config import UserError
from vfm.panels import TablePanel

PatchResize = Literal["bicubic", "pinv"]
TRUNK = "visual.trunk."  # where open_clip has a timm encoder
_NORMS = {"norm.": "fc_norm."}


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


@dataclass(frozen=True)
class Rules:
    """How two sides differ. A rule is the beginning of a key, or what follows the number of a block in it."""

    dropped: Mapping[str, str]  # keys of the source that are not wanted, and why
    new: Mapping[str, str]  # keys of the module that the source need not have, and why
    rename: Callable[[str], str] = str  # the module's name of a key of the source
    patch_resize: PatchResize = "pinv"
    where: str = ""  # a mistake's first word
    have: str = "the encoder"
    want: str = "its vision tower"


def fit(source: Mapping[str, Tensor], module: Any, rules: Rules, report: KeyReport) -> None:
    """Loads a state dict into a module, in place; the report is filled.

    Beside the renaming, the final norm stands before pooling (`norm`) or after it (`fc_norm`), as the module has it.

    Args:
        source: tensors by key.
        module: a timm encoder, or a CLIP module of open_clip's.

    Raises:
        UserError: a key is missing, unknown or of another shape; nothing is loaded.
    """
    wanted: dict[str, Tensor] = module.state_dict()
    trunk = module.visual.trunk if hasattr(module, "visual") and hasattr(module.visual, "trunk") else module
    report.dropped.update({key: why for key in source if (why := _reason(key, rules.dropped))})
    targets = {key: rules.rename(key) for key in source if key not in report.dropped}
    fitted: dict[str, Tensor] = {}
    for key, named in targets.items():
        target = named if named in wanted else _other_norm(named)
        if target not in wanted or (target != named and target in targets.values()):
            raise UserError(
                f"{rules.where}: {rules.have} has {key}, {rules.want} has not; do depth and block type agree?"
            )
        tensor = source[key]
        fitted[target] = resized(target, tensor, wanted[target], trunk, rules.patch_resize)
        if fitted[target].shape != wanted[target].shape:
            shapes = f"{tuple(tensor.shape)}, {rules.want} wants {tuple(wanted[target].shape)}"
            raise UserError(f"{rules.where}: {key} of {rules.have} is {shapes}")
        if target != key:
            report.renamed[key] = target
        if tensor.shape != fitted[target].shape:
            report.resized[key] = f"{list(tensor.shape)} to {list(fitted[target].shape)}"
        elif target == key:
            report.taken.append(key)
    for key in (key for key in wanted if key not in fitted):
        if not (why := _reason(key, rules.new)):
            raise UserError(
                f"{rules.where}: {rules.want} has {key}, {rules.have} has not; do depth and block type agree?"
            )
        report.new[key] = why
    module.load_state_dict(fitted, strict=False)


def resized(key: str, tensor: Tensor, wanted: Tensor, trunk: Any, how: PatchResize) -> Tensor:
    """A tensor of a timm encoder at another size, where it is positions or a patch kernel; any other as it is."""
    key = key.removeprefix(TRUNK)
    if tensor.shape == wanted.shape:
        return tensor
    if key == "pos_embed" and tensor.shape[2:] == wanted.shape[2:]:
        prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
        resampled: Tensor = resample_abs_pos_embed(
            tensor, list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=how == "pinv"
        )
        return resampled
    if key == "patch_embed.proj.weight" and tensor.shape[:2] == wanted.shape[:2]:
        return resize_patch_kernel(tensor, (wanted.shape[2], wanted.shape[3]), how)
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


def _reason(key: str, rules: Mapping[str, str]) -> str:
    """The rule for a key: by its beginning, or for a part of a block by what follows the block's number."""
    return next((why for rule, why in rules.items() if key.startswith(rule) or f".{rule}" in key), "")


def _other_norm(key: str) -> str:
    """The final norm before pooling for the one after it, and the other way round."""
    prefix, name = (TRUNK, key.removeprefix(TRUNK)) if key.startswith(TRUNK) else ("", key)
    for before, after in _NORMS.items():
        for old, new in ((before, after), (after, before)):
            if name.startswith(old):
                return f"{prefix}{new}{name.removeprefix(old)}"
    return key
