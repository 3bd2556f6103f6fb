"""Models from files of weights: EVA's by our own rules, any other by those that timm and open_clip keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
from torch import Tensor, nn

from vfm.config import UserError
from vfm.models import clip_config, eva_import
from vfm.models.clip import ClipModel, build_clip
from vfm.models.clip_module import load_weights
from vfm.models.eva_import import Reading
from vfm.models.vision import build_vision
from vfm.models.weights import load_state_dict, save_state_dict

# What OpenAI's archives hold beside the weights; nobody else's do.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
NUMPY = (".npz", ".npy")  # big_vision's files


def clip_from_file(source: str | Mapping[str, Any] | None, file: Path, reading: Reading) -> ClipModel:
    """A CLIP model with a file's weights, in evaluation mode.

    Args:
        source: its architecture; None for the one that an EVA-CLIP file's shapes tell.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    if source is not None and file.suffix in NUMPY:  # which open_clip reads itself
        model = build_clip(source)
        load_weights(model.module, file, model.name)
    else:
        tensors = load_state_dict(file, ema=reading.ema)
        source = eva_import.clip_architecture(tensors, str(file)) if source is None else source
        model = _clip_with(source, tensors, file, reading)
    model.name = f"{model.name}/{file.stem}"
    model.module.eval()
    return model


def vision_from_file(source: str | Mapping[str, Any] | None, file: Path, reading: Reading) -> nn.Module:
    """A timm encoder with a file's weights, in evaluation mode; its head is kept where it has one.

    Args:
        source: its architecture; None for the one that an EVA file's shapes tell.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    tensors = load_state_dict(file, ema=reading.ema)
    source = eva_import.vision_architecture(tensors, str(file)) if source is None else source
    name = source if isinstance(source, str) else str(source.get("architecture"))
    if name.startswith("eva") or eva_import.is_official(tensors):
        model = build_vision(source, **eva_import.vision_arguments(tensors))
        eva_import.load_eva_vision(tensors, model, name, str(file), reading)
        return model.eval()
    head = tensors.get("head.weight")
    model = build_vision(source, num_classes=0 if head is None or "mask_token" in tensors else len(head))
    module = sys.modules[type(model).__module__]  # timm keeps a filter beside the architecture
    fit: Callable[..., dict[str, Tensor]] = getattr(module, "checkpoint_filter_fn", lambda tensors, model: tensors)
    try:
        model.load_state_dict(fit(tensors, model))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file}: does not fit {source!r}: {' '.join(str(error).split())[:300]}") from None
    return model.eval()


def _clip_with(
    source: str | Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path, reading: Reading
) -> ClipModel:
    """EVA-CLIP's weights, or one tower's of any, go in by our rules, all others by open_clip's loader."""
    ours = reading.part != "both" or eva_import.is_official(tensors)
    config = clip_config.clip_config(source) if isinstance(source, str) else source
    model = build_clip({**config, "custom_text": True} if ours else config, seed=0)
    model.name = source if isinstance(source, str) else model.name
    of_openai = any(key in tensors for key in OPENAI_SIZES)
    if (of_openai or file.name in _published_with_quick_gelu()) and not model.config.get("quick_gelu"):
        raise UserError(
            f"{file}: {'OpenAI' if of_openai else file.stem}'s weights were trained with QuickGELU, {model.name} has"
            " GELU; choose a model with it, such as ViT-B-32-quickgelu"
        )
    tensors = {key: value for key, value in tensors.items() if key not in OPENAI_SIZES}
    if ours:
        eva_import.load_eva_clip(tensors, model, str(file), reading)
        return model
    with TemporaryDirectory() as folder:  # open_clip's loader takes a file
        copy = Path(folder) / file.with_suffix(".safetensors").name
        save_state_dict(tensors, copy)
        load_weights(model.module, copy, model.name)
    return model


def _published_with_quick_gelu() -> set[str]:
    """Names of the files, of MetaCLIP's for one, that open_clip lists as trained with QuickGELU."""
    facts = [open_clip.get_pretrained_cfg(name, tag) for name, tag in open_clip.list_pretrained()]
    return {Path(fact["url"]).name for fact in facts if fact.get("quick_gelu") and fact.get("url")}
