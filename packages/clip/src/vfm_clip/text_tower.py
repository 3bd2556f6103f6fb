"""The text tower of one CLIP model put into another: every key accounted for, and what no key tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor, nn

from vfm.artifacts import ClipCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.clip_config import read_config, weights_file
from vfm.models.fitting import KeyReport, Rules, fit
from vfm.models.weights import load_state_dict

_FREE = ("hf_model_pretrained", "output_tokens")  # say nothing of the tower itself
_SCALARS = ("logit_scale", "logit_bias")


def hand_over_text(checkpoint: ClipCheckpoint, clip: ClipModel, ref: str) -> KeyReport:
    """Loads a checkpoint's text tower into that of a CLIP model, in place.

    Its projection comes along where both joint spaces have one width; else it is new.

    Args:
        ref: what to call the checkpoint.

    Returns:
        What became of every key; names are those of the text tower alone.

    Raises:
        UserError: the towers are not of one kind, or were trained with different activations, or a key is missing,
            unknown or of another shape; nothing is loaded.
    """
    config = read_config(checkpoint.path)["model_cfg"]
    check_text(config, clip, ref)
    if activation(config) != activation(clip.config):
        names = {True: "QuickGELU", False: "GELU"}
        raise UserError(
            f"model {clip.name} cannot take the text tower of init_text '{ref}': it was trained with"
            f" {names[bool(activation(config))]}, the model has {names[bool(activation(clip.config))]}"
        )
    weights, report = load_state_dict(weights_file(checkpoint.path)), KeyReport()
    narrow = f"the joint space of '{ref}' is {config['embed_dim']} wide, here {clip.embed_dim}"
    other = {} if config["embed_dim"] == clip.embed_dim else {"text_projection": narrow, "proj.": narrow}
    rules = Rules(other, other, where=clip.name, have=f"'{ref}'", want="its text tower")
    fit(_of_text(weights), _text_tower(clip.module), rules, report)
    return report


def check_text(config: Mapping[str, Any], clip: ClipModel, ref: str) -> None:
    """Refuses a text tower of another kind: of other widths, another tokenizer, other heads, another pooling, ...

    Args:
        config: open_clip's `model_cfg` of the model that the tower comes from.

    Raises:
        UserError: the first difference.
    """
    theirs, ours = (dataclasses.asdict(open_clip.CLIPTextCfg(**of["text_cfg"])) for of in (config, clip.config))
    for key in ours:
        if key not in _FREE and theirs[key] != ours[key]:
            raise UserError(
                f"model {clip.name} cannot take the text tower of init_text '{ref}': text_cfg.{key} is {theirs[key]!r}"
                f" there, {ours[key]!r} here"
            )


def activation(config: Mapping[str, Any]) -> bool | None:
    """Whether a configuration's text tower has QuickGELU; None for Hugging Face's, which have their own activation."""
    return None if config["text_cfg"].get("hf_model_name") else bool(config.get("quick_gelu"))


def text_names(clip: ClipModel, names: Mapping[str, str]) -> set[str]:
    """Names of a text tower's weights as they are in the whole model."""
    return {f"text.{name}" if hasattr(clip.module, "text") else name for name in names}


def _text_tower(module: nn.Module) -> nn.Module:
    """The text tower as a module by itself; its weights are the model's own."""
    if isinstance(text := getattr(module, "text", None), nn.Module):
        return text
    tower = nn.Module()
    for name, child in module.named_children():
        if name != "visual":
            tower.add_module(name, child)
    for name, weight in module.named_parameters(recurse=False):
        if name not in _SCALARS:
            tower.register_parameter(name, weight)
    return tower


def _of_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's part of a state dict, in open_clip's older layout (at the top) or the newer one (in `text.`)."""
    if any(key.startswith("text.") for key in weights):
        return {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
    return {key: value for key, value in weights.items() if not key.startswith("visual.") and key not in _SCALARS}
