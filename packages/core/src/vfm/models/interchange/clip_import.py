"""Import CLIP models by open_clip's names, or from the hub, a folder, or a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
from torch import Tensor

from vfm.base import UserError, did_you_mean, drop_keys
from vfm.interfaces import ClipCheckpoint, Context, Preflight
from vfm.models.clip import clip_config
from vfm.models.clip.clip import ClipModel, blueprint, build_clip, load_clip, open_clip_incompatibility, save_clip
from vfm.models.clip.clip_module import load_weights
from vfm.models.clip.model_sources import check_weights_file, fetch, local_folder, weights_file_as_source
from vfm.models.clip.text import PROBES
from vfm.models.interchange import eva_import, hugging_face
from vfm.models.interchange.clip_layouts import clip_tensors, missing_part, tensors_with_text_of, with_text_of
from vfm.models.interchange.eva_import import DEFAULT_OPTIONS, ReadOptions
from vfm.models.interchange.hub_folders import clip_folder_of_hub
from vfm.models.interchange.hugging_face_siglip_import import load_transformers_model, transformers_model_config
from vfm.models.interchange.vision_import import show_key_report
from vfm.models.oracle.check import check_import
from vfm.models.oracle.published import published_clip
from vfm.models.preprocess import Preprocess
from vfm.models.stages import HUB_PREFIX, NO_WEIGHTS, ImportClip
from vfm.models.weight_transfer import KeyReport
from vfm.models.weights import check_finite_weights, load_state_dict, save_state_dict

# Entries of OpenAI's archives next to the weights; no other file has them.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
NUMPY_SUFFIXES = (".npz", ".npy")  # files of big_vision


def import_clip_checkpoint(config: ImportClip, ctx: Context) -> ClipCheckpoint:
    """Run `models.clip`.

    The weights are downloaded if they are not local, and saved in open_clip's layout.
    """
    report, options = KeyReport(), _options(config)
    if config.text_from:
        options = replace(options, text_from=load_clip(ctx.load(config.text_from)))
    model = import_clip(config.source, config.pretrained, options, report)
    check_finite_weights(model.module.state_dict(), config.pretrained or config.source)
    model.tokenize(PROBES)  # refuses a tokenizer that does not fit
    show_key_report(ctx, report)
    if config.compare:
        check_import(ctx, *published_clip(config, model, report))
    incompatibility = open_clip_incompatibility(model)
    if incompatibility:
        ctx.warn(incompatibility)
    return save_clip(model, ctx.directory)


def check_import_clip(config: ImportClip, ctx: Preflight) -> None:
    """Check names and tags of `models.clip`, and that the tokenizer fits the configuration where one is available."""
    check_clip_source(config.source, config.pretrained, _options(config))
    folder = local_folder(config.source) if isinstance(config.source, str) else None
    if config.text_from or not (folder or isinstance(config.source, dict)):
        return  # open_clip's own names have their tokenizer
    if folder:
        try:
            clip = blueprint(_folder_config(folder))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        clip.name, clip.folder = folder.name, folder
    else:
        clip = blueprint(config.source)
    clip.tokenize(PROBES)


def _options(config: ImportClip) -> ReadOptions:
    return ReadOptions(config.part, ema=config.weights == "ema", patch_resize=config.patch_resize)


def import_clip(
    source: str | Mapping[str, Any],
    pretrained: str | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    report: KeyReport | None = None,
) -> ClipModel:
    """Load a CLIP model with its pretrained weights, in evaluation mode.

    Args:
        source: An open_clip name or configuration, with `pretrained`. Without it, `hf-hub:org/model`,
            `local-dir:folder` or a folder, in open_clip's or Hugging Face's layout, or an EVA-CLIP file.
        pretrained: A tag that open_clip has for the name, or a file: safetensors, or a `torch.save` file of open_clip,
            OpenAI, EVA-CLIP, DIVA or un2CLIP, read with `weights_only`. `none`: random weights.
        options: How a file is read.
        report: Filled with what happened to every key, for an EVA-CLIP file, a file with a single tower, or a file
            with more than a CLIP model.

    Raises:
        UserError: If a name is unknown, the weights are missing or do not fit, they were trained with QuickGELU and the
            model has GELU, or the file has no text tower and `options` has none either.
    """
    report = KeyReport() if report is None else report
    folder = local_folder(source) if isinstance(source, str) else None
    if folder:
        return with_text_of(options.text_from, _loader_for(folder)(folder))
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        return with_text_of(options.text_from, _clip_from_hub(source.removeprefix(HUB_PREFIX)))
    check_clip_source(source, pretrained, options)
    file = weights_file_as_source(source, pretrained)
    if file:
        return clip_from_file(None, file, options, report)
    assert pretrained
    if pretrained == NO_WEIGHTS:
        return with_text_of(options.text_from, build_clip(source, seed=0))
    if isinstance(source, str) and not _is_file_name(pretrained):
        return _clip_by_tag(source, pretrained)
    return clip_from_file(source, Path(pretrained), options, report)


def check_clip_source(
    source: str | Mapping[str, Any], pretrained: str | None, options: ReadOptions = DEFAULT_OPTIONS
) -> None:
    """Check the names, tags and files of a CLIP model's source without reading its weights.

    Args:
        source: As in `import_clip`.
        pretrained: As in `import_clip`.
        options: As in `import_clip`.

    Raises:
        UserError: See `import_clip`.
    """
    if options.part != "both" and not (pretrained and _is_file_name(pretrained)):
        raise UserError(f"models.clip: part: {options.part} reads a tower from a file; set pretrained to that file")
    if weights_file_as_source(source, pretrained):
        return
    folder = local_folder(source) if isinstance(source, str) else None
    if folder or (isinstance(source, str) and source.startswith(HUB_PREFIX)):
        if pretrained:
            raise UserError(f"models.clip: {source!r} has its own weights; leave pretrained out")
        if folder:
            _loader_for(folder)
        return
    if isinstance(source, str):
        clip_config.get_clip_config(source)
    else:
        clip_config.check_keys(source, "custom")
    if not pretrained:
        raise UserError(f"models.clip: pretrained is required for {source!r}; {_tags(source)}, or the path of a file")
    if pretrained == NO_WEIGHTS:
        return
    if _is_file_name(pretrained):
        check_weights_file(pretrained)
    elif isinstance(source, str):
        _tag_record(source, pretrained)


def clip_from_file(
    source: str | Mapping[str, Any] | None, file: Path, options: ReadOptions, report: KeyReport
) -> ClipModel:
    """Load a CLIP model with a file's weights, in evaluation mode.

    Args:
        source: Its architecture; None to find it from the shapes in an EVA-CLIP file.
        file: The file of weights.
        options: How the file is read.
        report: As in `import_clip`.

    Raises:
        UserError: If the file cannot be read, or does not fit.
    """
    if source is not None and file.suffix in NUMPY_SUFFIXES:  # open_clip reads these itself
        model = build_clip(source)
        load_weights(model.module, file, model.name)
    else:
        tensors = load_state_dict(file, ema=options.ema)
        if source is None:
            source = eva_import.clip_architecture(tensors, str(file))
        model = _clip_with(source, tensors, file, options, report)
    model.name = f"{model.name}/{file.stem}"
    model.module.eval()
    return model


def _clip_with(
    source: str | Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    file: Path,
    options: ReadOptions,
    report: KeyReport,
) -> ClipModel:
    """Build a model and load a file's tensors.

    `eva_import` loads EVA-CLIP's weights and single towers, and open_clip's own loader all others.
    """
    tensors = clip_tensors(tensors, report)
    by_eva_import = options.part != "both" or eva_import.is_official(tensors)
    config = clip_config.get_clip_config(source) if isinstance(source, str) else source
    text_source = options.text_from
    if text_source:
        config = {**config, "text_cfg": text_source.config["text_cfg"]}
    if by_eva_import:
        config = {**config, "custom_text": True}
    model = build_clip(config, seed=0)
    model.name = source if isinstance(source, str) else model.name
    is_openai = not tensors.keys().isdisjoint(OPENAI_SIZES)
    if (is_openai or file.name in _published_with_quick_gelu()) and not model.config.get("quick_gelu"):
        publisher = "OpenAI" if is_openai else file.stem
        raise UserError(
            f"{file}: {publisher}'s weights were trained with QuickGELU, {model.name} has"
            " GELU; choose a model with it, such as ViT-B-32-quickgelu"
        )
    tensors = drop_keys(tensors, OPENAI_SIZES)
    if by_eva_import:
        eva_import.load_eva_clip(tensors, model, str(file), options, report)
        return with_text_of(text_source, model)
    missing = missing_part(tensors)
    if text_source:
        tensors = tensors_with_text_of(text_source, tensors, str(file))
        model.preprocess, model.folder = text_source.preprocess, text_source.folder
    elif missing:
        raise UserError(
            f"{file}: has no {missing}; set text_from to the CLIP model that it was trained from, or part: visual for"
            " an untrained text tower"
        )
    with TemporaryDirectory() as folder:  # open_clip's loader only takes a file
        copy = Path(folder) / file.with_suffix(".safetensors").name
        save_state_dict(tensors, copy)
        load_weights(model.module, copy, model.name, origin=file)
    return model


def _published_with_quick_gelu() -> set[str]:
    """Collect the names of files, such as MetaCLIP's, that open_clip lists as trained with QuickGELU."""
    names = set()
    for name, tag in open_clip.list_pretrained():
        record = open_clip.get_pretrained_cfg(name, tag)
        if record.get("quick_gelu") and record.get("url"):
            names.add(Path(record["url"]).name)
    return names


def _clip_by_tag(name: str, tag: str) -> ClipModel:
    """Load a model with the weights of an open_clip tag, with QuickGELU if the tag was trained with it."""
    record = _tag_record(name, tag)
    file = Path(fetch(f"{name} {tag}", lambda: open_clip.download_pretrained(record)))
    config = clip_config.get_clip_config(name)
    if record.get("quick_gelu"):
        config = {**config, "quick_gelu": True}
    model = clip_from_file(config, file, DEFAULT_OPTIONS, KeyReport())
    model.name = f"{name}/{tag}"
    model.preprocess = Preprocess.from_open_clip(record, model.preprocess.image_size)
    return model


def _tag_record(name: str, tag: str) -> dict[str, Any]:
    """Look up open_clip's record of a tag. It has the address of the weights and the preprocessing."""
    record = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    if not record:
        clip_config.get_clip_config(name)  # an unknown name is the better error
        known = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(f"models.clip: {tag!r} is not a tag of {name!r}{did_you_mean(tag, known)}")
    return dict(record)


def _loader_for(folder: Path) -> Callable[[Path], ClipModel]:
    """Choose the function that loads the CLIP model of a folder, by the folder's layout."""
    if (folder / clip_config.CONFIG_FILE).is_file():
        return load_clip
    if (folder / hugging_face.CONFIG_FILE).is_file():
        return load_transformers_model
    raise UserError(f"{folder}: no CLIP model (looked for {clip_config.CONFIG_FILE} and {hugging_face.CONFIG_FILE})")


def _folder_config(folder: Path) -> dict[str, Any]:
    """Read open_clip's configuration of a folder's model, in either layout."""
    if (folder / clip_config.CONFIG_FILE).is_file():
        return dict(clip_config.read_clip_config(folder)["model_cfg"])
    return transformers_model_config(folder)


def _clip_from_hub(repo: str) -> ClipModel:
    """Load a model from the hub."""
    folder = clip_folder_of_hub(repo)
    model = _loader_for(folder)(folder)
    model.name = f"{HUB_PREFIX}{repo}"
    return model


def _is_file_name(pretrained: str) -> bool:
    """Check whether `pretrained` is a file rather than a tag: no tag of open_clip has a suffix."""
    return bool(Path(pretrained).suffix) or Path(pretrained).is_file()


def _tags(source: str | Mapping[str, Any]) -> str:
    known = open_clip.list_pretrained_tags_by_model(source) if isinstance(source, str) else []
    if not known:
        return "open_clip lists no tag for it"
    return f"tags of open_clip: {', '.join(known)}"
