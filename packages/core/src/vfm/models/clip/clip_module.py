"""Build the torch module of a CLIP configuration as open_clip does, with corrections for timm towers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import GELU, GELUTanh, PatchDropout
from torch import nn

from vfm.base import UserError, stripped
from vfm.models.clip.model_sources import first_line
from vfm.models.custom_code import without_custom_code
from vfm.models.stored_weights import map_weights


def build_module(config: Mapping[str, Any], name: str) -> nn.Module:
    """Build the module with random weights, at the configuration's image size.

    Raises:
        UserError: If the configuration is inconsistent, or the image size does not fit the patches.
    """
    _check_regularisation(config["vision_cfg"], name)
    module = _construct(config, name)
    _set_activation(module, config["vision_cfg"])
    set_image_size(module, config["vision_cfg"], name)
    _init_projection(module)
    visual = module.visual
    rate = config["vision_cfg"].get("patch_dropout")
    if isinstance(visual, VisionTransformer) and rate:
        visual.patch_dropout = PatchDropout(rate)  # open_clip's own draws on the CPU and synchronises the device
    return module


def set_image_size(module: nn.Module, vision: Mapping[str, Any], name: str) -> None:
    """Check the image size against the patches, and resize a timm encoder to it.

    open_clip builds a timm encoder at the encoder's default size. Learned position embeddings are resampled, and rotary
    positions are recomputed.

    Args:
        module: Module of an open_clip model.
        vision: Its `vision_cfg`.
        name: The model's name, for errors.

    Raises:
        UserError: If the size does not fit.
    """
    size = vision.get("image_size", 224)
    visual = module.visual
    if not isinstance(size, int):
        raise UserError(f"CLIP model {name!r}: image_size: expected one number (images are square), got {size}")
    trunk = getattr(visual, "trunk", None)
    embed = getattr(trunk, "patch_embed", None)
    patch_owner = visual if trunk is None else embed
    patch = getattr(patch_owner, "patch_size", None)
    # At timm's default size the patches need not cover the image: SigLIP's 384.
    if patch and size % patch[0] and size != _timm_size(vision.get("timm_model_name")):
        raise UserError(f"CLIP model {name!r}: image_size {size} is not a multiple of its patch size {patch[0]}")
    if getattr(embed, "img_size", None) not in (None, (size, size)):
        visual.set_input_size(size)  # type: ignore[union-attr,operator]


def load_weights(module: nn.Module, file: Path, name: str, *, origin: Path | None = None) -> None:
    """Load a complete state dict with open_clip's own strict loader.

    The loader also reads open_clip's older layouts.

    Args:
        module: Module of an open_clip model.
        file: File of the weights.
        name: The model's name, for errors.
        origin: The user's file, for errors, if `file` is a temporary copy of it.

    Raises:
        UserError: If the file cannot be read, or does not fit.
    """
    if map_weights(module, file):
        return
    try:
        open_clip.load_checkpoint(module, str(file), strict=True, weights_only=True)
    except Exception as error:  # torch, safetensors and pickle raise different types
        lines = stripped(str(error).splitlines())
        raise UserError(f"{origin or file}: does not fit {name}: {' '.join(lines[:2])[:300]}") from None


def plain_config(module: nn.Module, config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Adapt a configuration so that open_clip itself builds this module and can load its weights.

    open_clip builds a timm tower at the image size in its name and ignores `image_size`. At another size, the name must
    refer to the same encoder at that size (`vit_base_patch16_384` for `vit_base_patch16_224`). Whether it is the same
    encoder is checked on the features of a random image.

    Args:
        module: Module of the model.
        config: Its configuration.
        name: Its name, for errors.

    Returns:
        The configuration, or None if timm has no such encoder.
    """
    plain = deepcopy(dict(config))
    vision = plain["vision_cfg"]
    default_size = _timm_size(vision.get("timm_model_name"))
    trunk = getattr(module.visual, "trunk", None)
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if not default_size or size in (None, (default_size, default_size)):
        return plain
    stem = vision["timm_model_name"].split(".", 1)[0].removesuffix(f"_{default_size}")
    vision["timm_model_name"] = f"{stem}_{size[0]}"
    if _timm_size(vision["timm_model_name"]) != size[0]:
        return None
    tower: Any = deepcopy(module.visual)
    candidate: Any = _construct(plain, name).visual
    try:
        candidate.load_state_dict(tower.state_dict())
    except RuntimeError:  # a different encoder under that name
        return None
    # Compared by what they compute, as an encoder of that name may differ in other ways than its size.
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = torch.allclose(candidate.eval()(pixels), tower.cpu().eval()(pixels), rtol=1e-4, atol=1e-5)
    return plain if same else None


def _construct(config: Mapping[str, Any], name: str) -> nn.Module:
    """Build a module as open_clip's factory does. The factory itself takes a name, not a configuration."""
    arguments = deepcopy(dict(config))
    of_transformers = "hf_model_name" in arguments["text_cfg"]
    custom_text = arguments.pop("custom_text", False) or of_transformers
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    if custom_text and "multimodal_cfg" in arguments:
        kind = open_clip.CoCa
    for part, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        arguments[part][key] = False  # never download weights here: they come from a checkpoint or from training
    try:
        with without_custom_code(f"CLIP model {name!r}") if of_transformers else nullcontext():
            module: nn.Module = kind(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError, ImportError, OSError) as error:
        reason = first_line(error)
        for theirs, ours in (("patch_drop_rate", "patch_dropout"), ("drop_path_rate", "drop_path")):
            if f"'{theirs}'" in reason:
                reason = f"{ours}: its encoder {arguments['vision_cfg']['timm_model_name']} has none"
        raise UserError(f"CLIP model {name!r}: {reason}") from None
    return module


def _set_activation(module: nn.Module, vision: Mapping[str, Any]) -> None:
    """Replace the GELUs of a timm tower by those of `act_kwargs`.

    open_clip reads this setting for its own tower only.
    """
    trunk = getattr(module.visual, "trunk", None)
    arguments = vision.get("act_kwargs")
    if trunk is None or not arguments:
        return
    for parent in list(trunk.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GELU | GELU | GELUTanh):
                setattr(parent, name, nn.GELU(**arguments))


def _check_regularisation(vision: Mapping[str, Any], name: str) -> None:
    """Refuse drop path and patch dropout that open_clip would silently ignore."""
    timm_tower = bool(vision.get("timm_model_name"))
    if vision.get("timm_drop_path") and not timm_tower:
        raise UserError(f"CLIP model {name!r}: drop_path is for timm's encoders; open_clip's own tower has none")
    if vision.get("patch_dropout") and not timm_tower and isinstance(vision.get("layers"), list | tuple):
        raise UserError(f"CLIP model {name!r}: patch_dropout is for vision transformers; its tower is a ResNet")


def _init_projection(module: nn.Module) -> None:
    """Initialise the projection of a timm tower with open_clip's standard deviation of 1 / sqrt(width).

    timm initialises the head of an `Eva` a thousand times smaller, for fine-tuning. Features are normalised, so the
    loss does not change, but the first gradients are a thousand times larger, and AdamW's second moment keeps the steps
    small long after. Trained from scratch on the synthetic shapes, EVA02-Nano-8-32 leaves a loss of ln N after 40 steps
    instead of 100.
    """
    head = None
    if isinstance(module.visual, TimmModel):
        head = getattr(module.visual.trunk, "head", None)
    if isinstance(head, nn.Linear):
        nn.init.normal_(head.weight, std=head.in_features**-0.5)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def _timm_size(name: str | None) -> int | None:
    """Look up the image size of timm's encoder of this name, if timm has one."""
    if not name or not timm.is_model(name.split(".", 1)[0]):
        return None
    size = timm.get_pretrained_cfg_value(name, "input_size")
    return int(size[-1]) if size else None
