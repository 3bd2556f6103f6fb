"""Pretrained models from outside: by the field's own names, from the hub, from a folder, from a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from vfm.config import UserError, did_you_mean
from vfm.models import clip_config, hugging_face
from vfm.models.clip import ClipModel, load_clip
from vfm.models.eva_import import Reading
from vfm.models.from_file import clip_from_file, vision_from_file
from vfm.models.preprocess import Preprocess
from vfm.models.sources import FOLDER, HUB, fetched, first_line, local_folder
from vfm.models.vision import build_vision

WHOLE = Reading()


def import_clip(source: str | Mapping[str, Any], pretrained: str | None = None, reading: Reading = WHOLE) -> ClipModel:
    """A CLIP model with its weights, in evaluation mode.

    Args:
        source: an open_clip name or configuration, with `pretrained`; or without it `hf-hub:org/model`,
            `local-dir:folder` or a folder, in open_clip's or Hugging Face's layout, or a file of EVA-CLIP's.
        pretrained: a tag of open_clip's for the name, or a file: safetensors, or a `torch.save` file of open_clip's,
            OpenAI's or EVA-CLIP's, read with `weights_only`.
        reading: how a file is read.

    Raises:
        UserError: unknown names, weights that are not there or do not fit, or weights trained with QuickGELU for a
            model without it.
    """
    if isinstance(source, str) and (folder := local_folder(source)):
        return _loader_of(folder)(folder)
    if isinstance(source, str) and source.startswith(HUB):
        return _clip_from_hub(source.removeprefix(HUB))
    check_clip_source(source, pretrained, reading)
    if file := _bare_file(source, pretrained):
        return clip_from_file(None, file, reading)
    assert pretrained
    if isinstance(source, str) and not _is_file_name(pretrained):
        return _clip_by_tag(source, pretrained)
    return clip_from_file(source, Path(pretrained), reading)


def import_vision(
    source: str | Mapping[str, Any], pretrained: str | None = None, reading: Reading = WHOLE
) -> nn.Module:
    """A timm encoder with its weights, in evaluation mode.

    Args:
        source: a timm name, perhaps with a tag (`vit_base_patch16_224.augreg_in21k`); `hf-hub:org/model`,
            `local-dir:folder` or a folder in timm's layout; a file of EVA's; with `pretrained` the architecture, also
            as a mapping.
        pretrained: a file of weights for that architecture: of EVA's in any of its layouts (of EVA-CLIP's the vision
            tower), or in any layout that timm's own filter reads. Its head is kept where it has one.
        reading: how a file is read.

    Raises:
        UserError: unknown names, or weights that are not there or do not fit.
    """
    check_vision_source(source, pretrained)
    if file := _bare_file(source, pretrained):
        return vision_from_file(None, file, reading)
    if pretrained:
        return vision_from_file(source, Path(pretrained), reading)
    folder = local_folder(source) if isinstance(source, str) else None
    return build_vision(f"{FOLDER}{folder}" if folder else source, pretrained=True).eval()


def check_clip_source(source: str | Mapping[str, Any], pretrained: str | None, reading: Reading = WHOLE) -> None:
    """What can be known of a CLIP model's source before its weights are fetched: names, tags, files.

    Raises:
        UserError: as `import_clip`.
    """
    if reading.part != "both" and not (pretrained and _is_file_name(pretrained)):
        raise UserError(f"models.clip: part: {reading.part} takes a tower from a file; name that file as pretrained")
    if _bare_file(source, pretrained):
        return
    if isinstance(source, str) and ((folder := local_folder(source)) or source.startswith(HUB)):
        if pretrained:
            raise UserError(f"models.clip: {source!r} brings its own weights; leave pretrained out")
        if folder:
            _loader_of(folder)
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
    if (outside and not pretrained) or _bare_file(source, pretrained):
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
    model = clip_from_file({**config, "quick_gelu": True} if facts.get("quick_gelu") else config, file, WHOLE)
    model.name = f"{name}/{tag}"
    model.preprocess = Preprocess.from_open_clip(facts, model.preprocess.image_size)
    return model


def _tag_facts(name: str, tag: str) -> dict[str, Any]:
    """open_clip's record of a tag: where its weights are and how they want their images."""
    facts = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    if not facts:
        clip_config.clip_config(name)
        known = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(f"models.clip: {tag!r} is no tag of {name!r}{did_you_mean(tag, known)}")
    return dict(facts)


def _loader_of(folder: Path) -> Callable[[Path], ClipModel]:
    """What loads the CLIP model of a folder, by its layout."""
    if (folder / clip_config.CONFIG_FILE).is_file():
        return load_clip
    if (folder / hugging_face.CONFIG_FILE).is_file():
        return hugging_face.load_hugging_face
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
    offline = False  # found out once: to ask again takes half a minute
    for config_file, other_files in layouts.items():
        try:
            folder = Path(hf_hub_download(repo, config_file, local_files_only=offline)).parent
        except Exception as error:  # not in this layout, or no network
            errors.append(error)
            offline = isinstance(error, LocalEntryNotFoundError)
            continue
        for name in other_files:
            try:
                hf_hub_download(repo, name)
            except Exception as error:  # it may have one kind of weights only
                errors.append(error)
                continue
            if name != hugging_face.PROCESSOR_FILE:
                break
        model = _loader_of(folder)(folder)
        model.name = f"{HUB}{repo}"
        return model
    why = next((error for error in errors if isinstance(error, LocalEntryNotFoundError)), errors[-1])
    raise UserError(f"{HUB}{repo}: cannot be fetched: {first_line(why)}")


def _bare_file(source: str | Mapping[str, Any], pretrained: str | None) -> Path | None:
    """The file that a source names by itself."""
    file = Path(source) if isinstance(source, str) and not pretrained else None
    return file if file and file.is_file() else None


def _is_file_name(pretrained: str) -> bool:
    """Whether it is a file rather than a tag: no tag of open_clip's has a suffix."""
    return bool(Path(pretrained).suffix) or Path(pretrained).is_file()


def _check_file(name: str) -> None:
    if not Path(name).is_file():
        raise UserError(f"{name}: no such checkpoint file")


def _tags(source: str | Mapping[str, Any]) -> str:
    known = open_clip.list_pretrained_tags_by_model(source) if isinstance(source, str) else []
    return f"tags of open_clip: {', '.join(known)}" if known else "open_clip lists no tag for it"
