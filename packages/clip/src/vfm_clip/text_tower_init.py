"""Initialises a CLIP model's text tower from another CLIP model, with checks of every key and of the activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor, nn

from vfm.models import (
    ClipModel,
    KeyReport,
    TransferRules,
    clip_weights_file,
    load_state_dict,
    read_clip_config,
    transfer_weights,
)
from vfm.plugin import ClipCheckpoint, UserError

_NOT_COMPARED = ("hf_model_pretrained", "output_tokens")  # settings that do not change the tower
_SCALARS = ("logit_scale", "logit_bias")


def init_text_tower(checkpoint: ClipCheckpoint, clip: ClipModel, ref: str) -> KeyReport:
    """Load a checkpoint's text tower into a CLIP model, in place.

    The projection is loaded too if both joint spaces have the same width. Otherwise it stays random.

    Args:
        checkpoint: The model to load from.
        clip: The model to load into.
        ref: Name of the checkpoint, for messages.

    Returns:
        What happened to every key, by its name within the text tower.

    Raises:
        UserError: If the towers differ in architecture or activation, or a key is missing, unknown or of another shape.
            Nothing is loaded then.
    """
    config = read_clip_config(checkpoint.path)["model_cfg"]
    check_text(config, clip, ref)
    source_gelu = uses_quick_gelu(config)
    model_gelu = uses_quick_gelu(clip.config)
    if source_gelu != model_gelu:
        names = {True: "QuickGELU", False: "GELU"}
        raise UserError(
            f"model {clip.name} cannot use the text tower of init_text '{ref}': it was trained with"
            f" {names[bool(source_gelu)]}, the model has {names[bool(model_gelu)]}"
        )
    weights = load_state_dict(clip_weights_file(checkpoint.path))
    report = KeyReport()
    skipped: dict[str, str] = {}
    if config["embed_dim"] != clip.embed_dim:
        widths = f"embed_dim of '{ref}' is {config['embed_dim']}, here {clip.embed_dim}"
        skipped = {"text_projection": widths, "proj.": widths}
    rules = TransferRules(skipped, skipped, where=clip.name, source=f"'{ref}'", target="its text tower")
    transfer_weights(_text_weights(weights), _text_tower(clip.module), rules, report)
    return report


def check_text(config: Mapping[str, Any], clip: ClipModel, ref: str) -> None:
    """Check that a text tower has the model's widths, heads, pooling, tokenizer and all other settings.

    Args:
        config: open_clip's `model_cfg` of the model that the tower is taken from.
        clip: The model that receives the tower.
        ref: Name of the source model, for messages.

    Raises:
        UserError: If a setting differs. The message names the first one.
    """
    theirs = dataclasses.asdict(open_clip.CLIPTextCfg(**config["text_cfg"]))
    ours = dataclasses.asdict(open_clip.CLIPTextCfg(**clip.config["text_cfg"]))
    # All settings, also ones that later versions of open_clip add.
    for key in ours:
        if key not in _NOT_COMPARED and theirs[key] != ours[key]:
            raise UserError(
                f"model {clip.name} cannot use the text tower of init_text '{ref}': text_cfg.{key} is {theirs[key]!r}"
                f" there, {ours[key]!r} here"
            )


def uses_quick_gelu(config: Mapping[str, Any]) -> bool | None:
    """Check whether a text tower uses QuickGELU.

    Returns:
        None for Hugging Face towers, because they define their own activation.
    """
    if config["text_cfg"].get("hf_model_name"):
        return None
    return bool(config.get("quick_gelu"))


def names_in_model(clip: ClipModel, names: Mapping[str, str]) -> set[str]:
    """Convert weight names within the text tower to names within the whole model."""
    prefix = "text." if hasattr(clip.module, "text") else ""
    return {prefix + name for name in names}


def _text_tower(module: nn.Module) -> nn.Module:
    """Extract the text tower as a module that shares the model's weights."""
    text = getattr(module, "text", None)
    if isinstance(text, nn.Module):
        return text
    # open_clip's `CLIP` has the text tower's layers at its top, next to `visual`.
    tower = nn.Module()
    for name, child in module.named_children():
        if name != "visual":
            tower.add_module(name, child)
    for name, weight in module.named_parameters(recurse=False):
        if name not in _SCALARS:
            tower.register_parameter(name, weight)
    return tower


def _text_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the text tower's part of a state dict in open_clip's older layout (at the top) or newer one (`text.`)."""
    tower = {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
    if tower:
        return tower
    return {key: value for key, value in weights.items() if not key.startswith("visual.") and key not in _SCALARS}
