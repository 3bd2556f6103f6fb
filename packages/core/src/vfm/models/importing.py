"""Pretrained models from outside: by the field's own names, from the hub, from a folder, from a file of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import timm
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from vfm.config import UserError, did_you_mean
from vfm.models import clip_config, hugging_face
from vfm.models.clip import ClipModel, build_clip, load_clip, load_weights
from vfm.models.preprocess import Preprocess
from vfm.models.sources import FOLDER, HUB, fetched, first_line, local_folder
from vfm.models.vision import build_vision
from vfm.models.weights import load_state_dict, save_state_dict

# What OpenAI's archives hold beside the weights; nobody else's do.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")


def import_clip(source: str | Mapping[str, Any], pretrained: str | None = None) -> ClipModel:
    """A CLIP model with its weights, in evaluation mode.

    Args:
        source: an open_clip name or configuration, with `pretrained`; or `hf-hub:org/model`, `local-dir:folder` or a
            folder, in open_clip's or Hugging Face's layout, without.
        pretrained: a tag of open_clip's for the name, or a file: safetensors, or a `torch.save` file of open_clip's or
            OpenAI's, read with `weights_only`.

    Raises:
        UserError: unknown names, weights that are not there or do not fit, or weights trained with QuickGELU for a
            model without it.
    """
    if isinstance(source, str) and (folder := local_folder(source)):
        return _clip_folder(folder)
    if isinstance(source, str) and source.startswith(HUB):
        return _clip_from_hub(source.removeprefix(HUB))
    check_clip_source(source, pretrained)
    assert pretrained
    if isinstance(source, str) and not _is_file_name(pretrained):
        return _clip_by_tag(source, pretrained)
    model = build_clip(source)
    model.name = f"{model.name}/{Path(pretrained).stem}"
    _load_clip_file(model, Path(pretrained))
    return model


def import_vision(source: str | Mapping[str, Any], pretrained: str | None = None) -> nn.Module:
    """A timm encoder with its weights, in evaluation mode.

    Args:
        source: a timm name, perhaps with a tag (`vit_base_patch16_224.augreg_in21k`); `hf-hub:org/model`,
            `local-dir:folder` or a folder in timm's layout; with `pretrained` the architecture, also as a mapping.
        pretrained: a file of weights for that architecture in any layout that timm's own filter reads (official EVA
            among them). Its head is kept where it has one.

    Raises:
        UserError: unknown names, or weights that are not there or do not fit.
    """
    check_vision_source(source, pretrained)
    if pretrained:
        return _vision_from_file(source, Path(pretrained)).eval()
    folder = local_folder(source) if isinstance(source, str) else None
    return build_vision(f"{FOLDER}{folder}" if folder else source, pretrained=True).eval()


def check_clip_source(source: str | Mapping[str, Any], pretrained: str | None) -> None:
    """What can be known of a CLIP model's source before its weights are fetched: names, tags, files.

    Raises:
        UserError: as `import_clip`.
    """
    if isinstance(source, str) and (local_folder(source) or source.startswith(HUB)):
        if pretrained:
            raise UserError(f"models.clip: {source!r} brings its own weights; leave pretrained out")
        return
    if isinstance(source, str):
        clip_config.clip_config(source)
    else:
        clip_config.check_keys(source, "custom")
    if not pretrained:
        raise UserError(f"models.clip: pretrained is required for {source!r}; {_tags(source)}, or the path of a file")
    if _is_file_name(pretrained):
        _check_file(pretrained)
    elif isinstance(source, str):
        _tag_facts(source, pretrained)


def check_vision_source(source: str | Mapping[str, Any], pretrained: str | None) -> None:
    """What can be known of an encoder's source before its weights are fetched: names, files.

    Raises:
        UserError: as `import_vision`.
    """
    name = source.removeprefix("timm/") if isinstance(source, str) else str(source.get("architecture"))
    outside = isinstance(source, str) and (local_folder(source) or source.startswith(HUB))
    if outside and not pretrained:
        return
    if outside or not timm.is_model(name.split(".")[0]):
        raise UserError(f"models.vision: {name!r} is no architecture of timm{did_you_mean(name, timm.list_models())}")
    if pretrained:
        _check_file(pretrained)
    elif isinstance(source, Mapping) or not timm.is_model_pretrained(name):
        raise UserError(f"models.vision: timm lists no weights for {name!r}; give a file of weights as pretrained")


def _clip_by_tag(name: str, tag: str) -> ClipModel:
    """open_clip's weights of a tag, with QuickGELU where the tag says that they were trained with it."""
    facts = _tag_facts(name, tag)
    file = Path(fetched(f"{name} {tag}", lambda: open_clip.download_pretrained(facts)))
    config = clip_config.clip_config(name)
    model = build_clip({**config, "quick_gelu": True} if facts.get("quick_gelu") else config)
    model.name = f"{name}/{tag}"
    model.preprocess = Preprocess.from_open_clip(facts, model.preprocess.image_size)
    _load_clip_file(model, file)
    return model


def _tag_facts(name: str, tag: str) -> dict[str, Any]:
    """open_clip's record of a tag: where its weights are and how they want their images."""
    facts = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    if not facts:
        clip_config.clip_config(name)
        known = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(f"models.clip: {tag!r} is no tag of {name!r}{did_you_mean(tag, known)}")
    return dict(facts)


def _load_clip_file(model: ClipModel, file: Path) -> None:
    """Loads a whole model's weights, whatever wraps them, with open_clip's own conversions, strictly."""
    if file.suffix in (".npz", ".npy"):  # big_vision's, which open_clip reads itself
        load_weights(model, file)
        model.module.eval()
        return
    tensors = load_state_dict(file)
    if any(key in tensors for key in OPENAI_SIZES):
        if not model.config.get("quick_gelu"):
            raise UserError(
                f"{file}: OpenAI's weights were trained with QuickGELU, {model.name} has GELU; "
                "choose a model with it, such as ViT-B-32-quickgelu"
            )
        tensors = {key: value for key, value in tensors.items() if key not in OPENAI_SIZES}
    with TemporaryDirectory() as folder:  # open_clip's loader takes a file
        save_state_dict(tensors, Path(folder) / file.with_suffix(".safetensors").name)
        load_weights(model, Path(folder) / file.with_suffix(".safetensors").name)
    model.module.eval()


def _clip_folder(folder: Path) -> ClipModel:
    if (folder / clip_config.CONFIG_FILE).is_file():
        return load_clip(folder)
    if (folder / hugging_face.CONFIG_FILE).is_file():
        return hugging_face.load_hugging_face(folder)
    raise UserError(
        f"{folder}: no CLIP model here (looked for {clip_config.CONFIG_FILE} and {hugging_face.CONFIG_FILE})"
    )


def _clip_from_hub(repo: str) -> ClipModel:
    """A model of the hub, in open_clip's layout where it has one, else in Hugging Face's."""
    layouts = {
        clip_config.CONFIG_FILE: clip_config.WEIGHTS_FILES,
        hugging_face.CONFIG_FILE: (hugging_face.PROCESSOR_FILE, *hugging_face.WEIGHTS_FILES),
    }
    errors: list[Exception] = []
    for config_file, other_files in layouts.items():
        try:
            folder = Path(hf_hub_download(repo, config_file)).parent
        except Exception as error:  # not in this layout, or no network: the last error says which
            errors.append(error)
            continue
        for name in other_files:
            try:
                hf_hub_download(repo, name)
            except Exception as error:  # it may have one kind of weights only
                errors.append(error)
                continue
            if name != hugging_face.PROCESSOR_FILE:
                break
        model = _clip_folder(folder)
        model.name = f"{HUB}{repo}"
        return model
    raise UserError(f"{HUB}{repo}: cannot be fetched: {first_line(errors[-1])}")


def _vision_from_file(source: str | Mapping[str, Any], file: Path) -> nn.Module:
    """Weights of a file in an architecture, through the filter that timm keeps beside the architecture, strictly."""
    tensors = load_state_dict(file)
    head = next((tensors[key] for key in ("head.weight", "visual.head.weight") if key in tensors), None)
    num_classes = 0 if head is None or "mask_token" in tensors else len(head)
    model = build_vision(source, num_classes=num_classes)
    module = sys.modules[type(model).__module__]
    fit: Callable[..., dict[str, Tensor]] = getattr(module, "checkpoint_filter_fn", lambda tensors, model: tensors)
    try:
        model.load_state_dict(fit(tensors, model))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file}: does not fit {source!r}: {' '.join(str(error).split())[:300]}") from None
    return model


def _is_file_name(pretrained: str) -> bool:
    """Whether it is a file rather than a tag: no tag of open_clip's has a suffix."""
    return bool(Path(pretrained).suffix) or Path(pretrained).is_file()


def _check_file(name: str) -> None:
    if not Path(name).is_file():
        raise UserError(f"{name}: no such checkpoint file")


def _tags(source: str | Mapping[str, Any]) -> str:
    known = open_clip.list_pretrained_tags_by_model(source) if isinstance(source, str) else []
    return f"tags of open_clip: {', '.join(known)}" if known else "open_clip lists no tag for it"
