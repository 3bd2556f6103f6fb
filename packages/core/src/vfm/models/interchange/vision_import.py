"""Import vision encoders by timm's names, or from the hub, a folder, or a file of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from vfm.base import UserError, did_you_mean
from vfm.interfaces import Context, Preflight, VisionCheckpoint
from vfm.models.clip.model_sources import check_weights_file, local_folder, weights_file_as_source
from vfm.models.interchange import eva_import
from vfm.models.interchange.eva_import import DEFAULT_OPTIONS, ReadOptions
from vfm.models.interchange.eva_layouts import masked_modelling_of
from vfm.models.interchange.hub_folders import encoder_folder_of_hub
from vfm.models.interchange.transformers_import import check_transformers_encoder, load_transformers_encoder
from vfm.models.oracle.check import Origin, check_import
from vfm.models.stages import FOLDER_PREFIX, HUB_PREFIX, NO_WEIGHTS, ImportVision
from vfm.models.transformers_folders.encoders import transformers_record
from vfm.models.vision.vision import VISION_CONFIG_FILE, build_vision, save_vision, vision_preprocess
from vfm.models.weight_transfer import KeyReport
from vfm.models.weights import check_finite_weights, load_state_dict, shapes_of
from vfm.storage.store_files import naming


def import_vision_checkpoint(config: ImportVision, ctx: Context) -> VisionCheckpoint:
    """Run `models.vision`.

    The weights are downloaded if they are not local, and saved in timm's layout.
    """
    options = ReadOptions(ema=config.weights == "ema", patch_resize=config.patch_resize)
    report = KeyReport()
    model, origin = _import(config.source, config.pretrained, options, report)
    check_finite_weights(model.state_dict(), config.pretrained or config.source)
    show_key_report(ctx, report)
    if config.compare and options.ema and not report.resized:
        check_import(ctx, model, origin)
    return save_vision(model, ctx.directory)


def check_import_vision(config: ImportVision, ctx: Preflight) -> None:
    """Check the names of `models.vision`."""
    check_vision_source(config.source, config.pretrained)


def show_key_report(ctx: Context, report: KeyReport) -> None:
    """Log and show what happened to every key of a file, unless timm or open_clip read the file."""
    if report.taken or report.renamed:
        ctx.log(f"keys of the file: {report.summary}")
        ctx.panel(report.panel("Imported weights"))


def import_vision(
    source: str | Mapping[str, Any],
    pretrained: str | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    report: KeyReport | None = None,
) -> nn.Module:
    """Load a timm encoder with its pretrained weights, in evaluation mode.

    Args:
        source: A timm name, optionally with a tag (`vit_base_patch16_224.augreg_in21k`), `hf-hub:org/model`,
            `local-dir:folder`, a folder in the layout of timm or transformers, or an EVA file. With `pretrained`, the
            architecture as a name or a mapping.
        pretrained: A file of weights for that architecture: an EVA file in any of its layouts (for EVA-CLIP, the vision
            tower is read), or any layout that timm's own filter reads. A head in the file is kept.
        options: How a file is read.
        report: Filled with the fate of every key of an EVA file, or of a folder of transformers.

    Raises:
        UserError: If a name is unknown, or the weights are missing or do not fit.
    """
    return _import(source, pretrained, options, KeyReport() if report is None else report)[0]


def _import(
    source: str | Mapping[str, Any], pretrained: str | None, options: ReadOptions, report: KeyReport
) -> tuple[nn.Module, Origin | None]:
    """Load an encoder as `import_vision` does, and describe its source.

    The source is None without a library to compare with.
    """
    check_vision_source(source, pretrained)
    file = weights_file_as_source(source, pretrained)
    if pretrained == NO_WEIGHTS:
        return build_vision(source, seed=0).eval(), None
    if file or pretrained:
        model = vision_from_file(None if file else source, file or Path(str(pretrained)), options, report)
        name = str(model.pretrained_cfg["architecture"])  # type: ignore[index]
        return model, Origin("timm", name, str(file or pretrained)) if isinstance(source, str) else None
    folder = _folder_of(source)
    if folder and transformers_record(folder):
        return load_transformers_encoder(folder, report), Origin.of_folder(folder)
    name = f"{FOLDER_PREFIX}{folder}" if folder else str(source).removeprefix("timm/")
    model = build_vision(name, pretrained=True).eval()
    if folder:
        with naming(folder / VISION_CONFIG_FILE, "the configuration of an encoder"):
            vision_preprocess(model)
    return model, Origin("timm", name)


def check_vision_source(source: str | Mapping[str, Any], pretrained: str | None) -> None:
    """Check the names and files of an encoder's source without reading its weights.

    Raises:
        UserError: See `import_vision`.
    """
    name = source.removeprefix("timm/") if isinstance(source, str) else str(source.get("architecture"))
    folder = local_folder(source) if isinstance(source, str) else None
    is_folder_or_repo = folder or (isinstance(source, str) and source.startswith(HUB_PREFIX))
    if folder and not pretrained and transformers_record(folder):
        check_transformers_encoder(folder)
    if (is_folder_or_repo and not pretrained) or weights_file_as_source(source, pretrained):
        return
    if is_folder_or_repo or not timm.is_model(name.split(".")[0]):
        hint = did_you_mean(name, timm.list_models())
        raise UserError(f"models.vision: {name!r} is not an architecture of timm{hint}")
    if pretrained == NO_WEIGHTS:
        return
    if pretrained:
        check_weights_file(pretrained)
    elif isinstance(source, Mapping) or not timm.is_model_pretrained(name):
        raise UserError(
            f"models.vision: timm lists no weights for {name!r}; set pretrained to a file of weights, or to none for"
            " random ones"
        )


def _folder_of(source: str | Mapping[str, Any]) -> Path | None:
    """Find the folder that a source names, or to which an encoder of transformers is downloaded, if there is one."""
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        return encoder_folder_of_hub(source.removeprefix(HUB_PREFIX))
    return local_folder(source) if isinstance(source, str) else None


def vision_from_file(
    source: str | Mapping[str, Any] | None, file: Path, options: ReadOptions, report: KeyReport
) -> nn.Module:
    """Load a timm encoder with a file's weights, in evaluation mode. A head in the file is kept.

    Args:
        source: Its architecture; None to find it from the shapes in an EVA file.
        file: The file of weights.
        options: How the file is read.
        report: Filled with the fate of every key of an EVA file.

    Raises:
        UserError: If the file cannot be read, or does not fit.
    """
    tensors = load_state_dict(file, ema=options.ema)
    if source is None:
        source = eva_import.vision_architecture(tensors, str(file))
    name = source if isinstance(source, str) else str(source.get("architecture"))
    if name.startswith("eva") or eva_import.is_official(tensors):
        model = build_vision(source, **eva_import.vision_arguments(tensors))
        eva_import.load_eva_vision(tensors, model, name, str(file), options, report)
        added = masked_modelling_of(tensors)
        if added:
            model.masked_modelling = added  # type: ignore[assignment]
        return model.eval()
    model = build_vision(source, num_classes=_count_classes(name, tensors))
    try:
        model.load_state_dict(_in_layout_of(model, tensors))
    except (RuntimeError, KeyError) as error:
        hint = f"vfm doctor {file} may find its architecture"
        raise UserError(f"{file}: does not fit {source!r} ({hint}): {' '.join(str(error).split())[:200]}") from None
    return model.eval()


def _count_classes(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Count the outputs of the head in a file for an architecture of timm, 0 if it has no head."""
    if "mask_token" in tensors:  # its head predicts masked patches
        return 0
    config = timm.get_pretrained_cfg(name.removeprefix("timm/").split(".")[0])
    classifier = (config and config.classifier) or ()  # one layer, or several as in DeiT's distilled models
    layers = [classifier] if isinstance(classifier, str) else classifier
    for layer in (*layers, "head"):
        head = tensors.get(f"{layer}.weight")
        if head is not None:
            return len(head)
    return 0


def _in_layout_of(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to a timm model's layout by the filter that timm defines next to the architecture.

    timm's own tensors stay unchanged, since some filters expect another layout.
    """
    if shapes_of(model.state_dict()) == shapes_of(tensors):
        return tensors
    module = sys.modules[type(model).__module__]
    convert: Callable[..., dict[str, Tensor]] = getattr(module, "checkpoint_filter_fn", lambda tensors, model: tensors)
    return convert(tensors, model)
