"""Initialises a CLIP model's text tower from another CLIP model's: every key is accounted for, activations compared."""

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

_NOT_COMPARED = ("hf_model_pretrained", "output_tokens")  # they do not change the tower
_SCALARS = ("logit_scale", "logit_bias")


def init_text_tower(checkpoint: ClipCheckpoint, clip: ClipModel, ref: str) -> KeyReport:
    """Load a checkpoint's text tower into that of a CLIP model, in place.

    Its projection is loaded too if both joint spaces have the same width; otherwise it stays random.

    Args:
        checkpoint: the model to load from.
        clip: the model to load into.
        ref: name of the checkpoint, for messages.

    Returns:
        What happened to every key; names are those of the text tower alone.

    Raises:
        UserError: the towers differ in architecture or activation, or a key is missing, unknown or of another shape;
            nothing is loaded.
    """
    config = read_clip_config(checkpoint.path)["model_cfg"]
    check_text(config, clip, ref)
    if uses_quick_gelu(config) != uses_quick_gelu(clip.config):
        names = {True: "QuickGELU", False: "GELU"}
        raise UserError(
            f"model {clip.name} cannot use the text tower of init_text '{ref}': it was trained with"
            f" {names[bool(uses_quick_gelu(config))]}, the model has {names[bool(uses_quick_gelu(clip.config))]}"
        )
    weights, report = load_state_dict(clip_weights_file(checkpoint.path)), KeyReport()
    widths = f"embed_dim of '{ref}' is {config['embed_dim']}, here {clip.embed_dim}"
    skipped = {} if config["embed_dim"] == clip.embed_dim else {"text_projection": widths, "proj.": widths}
    rules = TransferRules(skipped, skipped, where=clip.name, source=f"'{ref}'", target="its text tower")
    transfer_weights(_text_weights(weights), _text_tower(clip.module), rules, report)
    return report


def check_text(config: Mapping[str, Any], clip: ClipModel, ref: str) -> None:
    """Check that a text tower has the model's widths, heads, pooling, tokenizer and so on.

    Args:
        config: open_clip's `model_cfg` of the model that the tower comes from.
        clip: the model that it goes into.
        ref: name of the former, for messages.

    Raises:
        UserError: the first difference.
    """
    theirs, ours = (dataclasses.asdict(open_clip.CLIPTextCfg(**of["text_cfg"])) for of in (config, clip.config))
    for key in ours:
        if key not in _NOT_COMPARED and theirs[key] != ours[key]:
            raise UserError(
                f"model {clip.name} cannot use the text tower of init_text '{ref}': text_cfg.{key} is {theirs[key]!r}"
                f" there, {ours[key]!r} here"
            )


def uses_quick_gelu(config: Mapping[str, Any]) -> bool | None:
    """Return whether a text tower has QuickGELU; None for Hugging Face's, which have activations of their own."""
    return None if config["text_cfg"].get("hf_model_name") else bool(config.get("quick_gelu"))


def names_in_model(clip: ClipModel, names: Mapping[str, str]) -> set[str]:
    """Return the names of a text tower's weights in the whole model."""
    return {f"text.{name}" if hasattr(clip.module, "text") else name for name in names}


def _text_tower(module: nn.Module) -> nn.Module:
    """Return the text tower as a module; its weights are the model's own."""
    if isinstance(text := getattr(module, "text", None), nn.Module):
        return text
    # open_clip's `CLIP` has the text tower's layers at its top, beside `visual`.
    tower = nn.Module()
    for name, child in module.named_children():
        if name != "visual":
            tower.add_module(name, child)
    for name, weight in module.named_parameters(recurse=False):
        if name not in _SCALARS:
            tower.register_parameter(name, weight)
    return tower


def _text_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the text tower's part of a state dict in open_clip's older layout (at the top) or newer one (`text.`)."""
    if any(key.startswith("text.") for key in weights):
        return {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
    return {key: value for key, value in weights.items() if not key.startswith("visual.") and key not in _SCALARS}
