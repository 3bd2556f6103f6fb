"""Layouts of `vfm export` that other libraries read, and the models that each can hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from vfm.base import UserError, did_you_mean
from vfm.interfaces import FACTS_FILE, Artifact, Context, ExportedModel, Preflight
from vfm.models.clip import clip_config
from vfm.models.clip.clip import ClipModel, load_clip, open_clip_incompatibility, save_clip
from vfm.models.interchange import hugging_face, hugging_face_siglip
from vfm.models.interchange.eva_layouts import official_masked_modelling, to_official
from vfm.models.interchange.hugging_face_config import hugging_face_config
from vfm.models.interchange.hugging_face_siglip_import import load_transformers_model
from vfm.models.interchange.llava_export import llava_mismatch, write_llava
from vfm.models.small_models import ENCODERS
from vfm.models.stages import Export
from vfm.models.vision.vision import (
    VISION_CONFIG_FILE,
    load_vision,
    masked_modelling,
    read_masked_modelling,
    save_vision,
)
from vfm.models.weight_transfer import KeyReport
from vfm.models.weights import check_finite_weights, save_state_dict
from vfm.storage.store_files import read_record

Model = ClipModel | nn.Module


@dataclass(frozen=True)
class Format:
    """A layout in which a model can be exported."""

    description: str
    mismatch: Callable[[Model], str]  # explains why a model cannot have this layout; empty if it can
    write: Callable[[Model, Path], list[str]]  # writes the files and returns lines for the user


def open_model(folder: Path) -> Model:
    """Load the model of an artifact, or of a folder in open_clip's, timm's or Hugging Face's layout.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the folder holds no model, its weights do not fit or are not finite, or a file of the artifact is
            damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / FACTS_FILE).is_file():
        Artifact.load(folder)  # compares the hashes of its files
    model = _load_model(folder)
    module = _module(model)
    for tensors in (module.state_dict(), masked_modelling(module)):
        check_finite_weights(tensors, folder)
    return model


def _load_model(folder: Path) -> Model:
    if (folder / clip_config.CONFIG_FILE).is_file():
        return load_clip(folder)
    config = folder / VISION_CONFIG_FILE
    if config.is_file():
        # timm and Hugging Face use the same file name. Only timm's has an `architecture`.
        if "architecture" in read_record(config):
            return _with_masked_modelling(folder)
        return load_transformers_model(folder)
    raise UserError(f"{folder}: no model (looked for {clip_config.CONFIG_FILE} and {VISION_CONFIG_FILE})")


def _module(model: Model) -> nn.Module:
    return model.module if isinstance(model, ClipModel) else model


def _with_masked_modelling(folder: Path) -> nn.Module:
    model = load_vision(folder).eval()
    added = read_masked_modelling(folder)
    if added:
        model.masked_modelling = added  # type: ignore[assignment]
    return model


def find_format(name: str, model: Model, where: str, base: Path | None = None) -> Format:
    """Look up a format by name, and check that it can hold the model.

    Args:
        name: Name of the format.
        model: Model to be exported.
        where: Location of the model, for errors.
        base: For `llava`, the folder of the checkpoint that the model becomes a part of.

    Raises:
        UserError: If the format does not exist, or it cannot hold the model. The message names the formats that can.
    """
    check_format(name, base)
    form = _llava(base) if base else FORMATS[name]
    reason = form.mismatch(model)
    if reason:
        possible = ", ".join(other for other, form in FORMATS.items() if not form.mismatch(model))
        raise UserError(f"{where}: cannot be exported as {name}: {reason}; possible formats: {possible}")
    return form


def check_format(name: str, base: Path | None) -> None:
    """Check that a format exists, and that there is a base for `llava` and only for it.

    Raises:
        UserError: If one of these does not hold.
    """
    names = [*FORMATS, "llava"]
    if name not in names:
        raise UserError(f"format {name}: no such format{did_you_mean(name, names)}")
    if name == "llava" and not base:
        raise UserError("format llava: base is required, the folder of the LLaVA checkpoint whose tower is replaced")
    if base and name != "llava":
        raise UserError(f"format {name}: base is the folder of a LLaVA checkpoint, for format llava only; got {base}")


def _llava(base: Path) -> Format:
    return Format(
        "a LLaVA checkpoint with this vision tower",
        partial(llava_mismatch, base=base),
        partial(write_llava, base=base),
    )


def export_checkpoint(config: Export, ctx: Context) -> ExportedModel:
    """Run `models.export`: write a model in another library's layout."""
    model = open_model(ctx.load(config.model).path)
    base = Path(config.base) if config.base else None
    form = find_format(config.format, model, str(config.model), base)
    for line in form.write(model, ctx.directory):
        ctx.log(line)
    return ExportedModel.create(ctx.directory, format=config.format)


def check_export(config: Export, ctx: Preflight) -> None:
    """Check the format's name, and whether it can hold the model if the model exists."""
    base = Path(config.base) if config.base else None
    check_format(config.format, base)
    checkpoint = ctx.artifact(config.model)
    if checkpoint:
        find_format(config.format, open_model(checkpoint.path), str(config.model), base)


def _no_mismatch(model: Model) -> str:
    return ""


def _timm_mismatch(model: Model) -> str:
    if isinstance(model, ClipModel) and not isinstance(model.module.visual, TimmModel):
        return "its vision tower is open_clip's own"
    return ""


def _write_timm(model: Model, directory: Path) -> list[str]:
    if not isinstance(model, ClipModel):
        save_vision(model, directory)
        return []
    visual: Any = model.module.visual
    save_vision(visual.trunk, directory)
    head = "with the projection as its head" if visual.trunk.num_classes else "without the projection"
    return [f"only the vision tower, {head}"]


def _clip_mismatch(model: Model) -> str:
    return "" if isinstance(model, ClipModel) else "it is a vision encoder without a text tower"


def _write_open_clip(model: Model, directory: Path) -> list[str]:
    assert isinstance(model, ClipModel)
    save_clip(model, directory)
    incompatibility = open_clip_incompatibility(model)
    return [incompatibility] if incompatibility else []


def _hugging_face_mismatch(model: Model) -> str:
    if not isinstance(model, ClipModel):
        return timm_wrapper_mismatch(model)
    clip = hugging_face.hugging_face_mismatches(model)
    siglip = hugging_face_siglip.siglip_mismatches(model)
    if not clip or not siglip:
        return ""
    return f"not a CLIPModel ({', '.join(clip)}) and not a SiglipModel ({', '.join(siglip)})"


def _write_hugging_face(model: Model, directory: Path) -> list[str]:
    if not isinstance(model, ClipModel):
        save_timm_wrapper(model, directory)
        return ["a TimmWrapperModel, which AutoModel reads"]
    if hugging_face.hugging_face_mismatches(model):
        hugging_face_siglip.save_siglip(model, directory)
        return ["a SiglipModel"]
    hugging_face.save_hugging_face(model, directory)
    return ["a CLIPModel"]


def transformers_config(model: ClipModel, where: str) -> dict[str, Any]:
    """Build the `config.json` of a CLIP model in Hugging Face's layout, without reading weights.

    Args:
        model: The model.
        where: Its name in the message.

    Raises:
        UserError: If that layout cannot hold the model.
    """
    find_format("hf", model, where)
    is_siglip = bool(hugging_face.hugging_face_mismatches(model))
    return hugging_face_siglip.siglip_config(model) if is_siglip else hugging_face_config(model)


def _write_safetensors(model: Model, directory: Path) -> list[str]:
    save_state_dict(_module(model).state_dict(), directory / "model.safetensors")
    library = "open_clip" if isinstance(model, ClipModel) else "timm"
    return [f"only the weights, under the names of {library}"]


def _to_eva(model: Model, report: KeyReport) -> dict[str, Any]:
    if isinstance(model, ClipModel):
        reason = _timm_mismatch(model)
        if reason:
            raise UserError(reason)
        visual: Any = model.module.visual
        return to_official(model.module.state_dict(), visual.trunk, report)
    tensors = to_official(model.state_dict(), model, report)
    added = official_masked_modelling(masked_modelling(model))
    if "head.weight" in tensors or not added:
        return tensors
    report.new.update(dict.fromkeys(added, "mask token and head, with which the official code goes on"))
    return {**tensors, **added}


def _eva_mismatch(model: Model) -> str:
    try:
        _to_eva(model, KeyReport())
    except UserError as error:
        return str(error)
    return ""


def _write_eva(model: Model, directory: Path) -> list[str]:
    report = KeyReport()
    tensors = {key: value.detach().cpu().clone() for key, value in _to_eva(model, report).items()}
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, directory / "model.pt")  # the only kind of file that the official code loads
    (directory / "keys.json").write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")
    return [f"model.pt: {report.summary}; keys.json lists every key"]


def _write_onnx(model: Model, directory: Path) -> list[str]:
    from vfm.models.interchange.onnx_export import write_onnx  # onnxruntime and onnxscript are an extra

    return write_onnx(model, directory)


FORMATS = {
    "timm": Format("a vision encoder in timm's layout", _timm_mismatch, _write_timm),
    "open_clip": Format("a CLIP model in open_clip's layout", _clip_mismatch, _write_open_clip),
    "hf": Format("a model in Hugging Face's layout", _hugging_face_mismatch, _write_hugging_face),
    "safetensors": Format("the weights in one file", _no_mismatch, _write_safetensors),
    "onnx": Format("files for onnxruntime, for any batch size", _no_mismatch, _write_onnx),
    "eva": Format("a file in the layout of the official EVA code", _eva_mismatch, _write_eva),
}


def timm_wrapper_mismatch(model: nn.Module) -> str:
    """Explain why transformers cannot read an encoder; empty if it can."""
    config: Any = model.pretrained_cfg
    name = str(config.get("architecture"))
    if name in ENCODERS:
        return f"its architecture {name} is vfm's own, and transformers knows timm's only"
    return ""


def save_timm_wrapper(model: nn.Module, directory: Path) -> None:
    """Save an encoder for `AutoModel` and, with a head, `AutoModelForImageClassification`. timm reads it too."""
    save_vision(model, directory)
    file = directory / VISION_CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)  # transformers sets it itself, by the class of the model
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
