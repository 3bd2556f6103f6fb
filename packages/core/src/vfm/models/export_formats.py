"""A model in the layout that other people's code reads: the formats of `vfm export`, each with what it can hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from vfm.config import UserError, did_you_mean
from vfm.models import clip_config, hugging_face, hugging_face_siglip, vision
from vfm.models.clip import ClipModel, load_clip, open_clip_incompatibility, save_clip
from vfm.models.eva_layouts import to_official
from vfm.models.vision import load_vision, save_vision
from vfm.models.weight_transfer import KeyReport
from vfm.models.weights import save_state_dict

Model = ClipModel | nn.Module


@dataclass(frozen=True)
class Format:
    """A layout: what it is, why a model cannot have it (nothing where it can), and how it is written."""

    what: str
    why_not: Callable[[Model], str]
    write: Callable[[Model, Path], list[str]]  # returns lines for the user


def open_model(folder: Path) -> Model:
    """The model of an artifact, or of any folder in open_clip's, timm's or Hugging Face's layout, in evaluation mode.

    Raises:
        UserError: there is none, or its weights do not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / clip_config.CONFIG_FILE).is_file():
        return load_clip(folder)
    if (config := folder / vision.VISION_CONFIG_FILE).is_file():
        try:
            record = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{config}: not readable as JSON: {error}") from None
        return load_vision(folder).eval() if "architecture" in record else hugging_face.load_hugging_face(folder)
    raise UserError(f"{folder}: no model here (looked for {clip_config.CONFIG_FILE} and {vision.VISION_CONFIG_FILE})")


def find_format(name: str, model: Model, where: str) -> Format:
    """The format of a name, where the model can have it.

    Raises:
        UserError: there is no such format, or the model does not fit; the line says why and names those that fit.
    """
    if name not in FORMATS:
        raise UserError(f"--format {name}: there are {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    if why := FORMATS[name].why_not(model):
        fitting = ", ".join(other for other, form in FORMATS.items() if not form.why_not(model))
        raise UserError(f"{where}: not as {name}: {why}; formats that fit: {fitting}")
    return FORMATS[name]


def _always(model: Model) -> str:
    return ""


def _why_not_timm(model: Model) -> str:
    if isinstance(model, ClipModel) and not isinstance(model.module.visual, TimmModel):
        return "its vision tower is open_clip's own"
    return ""


def _write_timm(model: Model, directory: Path) -> list[str]:
    if not isinstance(model, ClipModel):
        save_vision(model, directory)
        return []
    visual: Any = model.module.visual
    save_vision(visual.trunk, directory)
    head = "its head is the projection" if visual.trunk.num_classes else "without the projection"
    return [f"the vision tower alone, {head}"]


def _why_not_clip(model: Model) -> str:
    return "" if isinstance(model, ClipModel) else "it is a vision encoder without a text tower"


def _write_open_clip(model: Model, directory: Path) -> list[str]:
    assert isinstance(model, ClipModel)
    save_clip(model, directory)
    return [why] if (why := open_clip_incompatibility(model)) else []


def _why_not_hugging_face(model: Model) -> str:
    if not isinstance(model, ClipModel):
        return _why_not_clip(model)
    clip, sigmoid = hugging_face.why_not_hugging_face(model), hugging_face_siglip.why_not_siglip(model)
    if not clip or not sigmoid:
        return ""
    return f"no CLIPModel ({', '.join(clip)}) and no SiglipModel ({', '.join(sigmoid)})"


def _write_hugging_face(model: Model, directory: Path) -> list[str]:
    assert isinstance(model, ClipModel)
    if hugging_face.why_not_hugging_face(model):
        hugging_face_siglip.save_siglip(model, directory)
        return ["a SiglipModel"]
    hugging_face.save_hugging_face(model, directory)
    return ["a CLIPModel"]


def _write_safetensors(model: Model, directory: Path) -> list[str]:
    module = model.module if isinstance(model, ClipModel) else model
    save_state_dict(module.state_dict(), directory / "model.safetensors")
    return ["weights alone, under the names of " + ("open_clip" if isinstance(model, ClipModel) else "timm")]


def _official(model: Model, report: KeyReport) -> dict[str, Any]:
    if isinstance(model, ClipModel):
        if why := _why_not_timm(model):
            raise UserError(why)
        visual: Any = model.module.visual
        return to_official(model.module.state_dict(), visual.trunk, report)
    return to_official(model.state_dict(), model, report)


def _why_not_eva(model: Model) -> str:
    try:
        _official(model, KeyReport())
    except UserError as error:
        return str(error)
    return ""


def _write_eva(model: Model, directory: Path) -> list[str]:
    report = KeyReport()
    tensors = {key: value.detach().cpu().clone() for key, value in _official(model, report).items()}
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors}, directory / "model.pt")  # the one kind of file that the official code loads
    (directory / "keys.json").write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")
    return [f"model.pt: {report.summary}; keys.json says of each what became of it"]


def _write_onnx(model: Model, directory: Path) -> list[str]:
    from vfm.models.onnx_export import write_onnx

    return write_onnx(model, directory)


FORMATS = {
    "timm": Format("a vision encoder in timm's layout", _why_not_timm, _write_timm),
    "open_clip": Format("a CLIP model in open_clip's layout", _why_not_clip, _write_open_clip),
    "hf": Format("a model in Hugging Face's layout", _why_not_hugging_face, _write_hugging_face),
    "safetensors": Format("the weights in one file", _always, _write_safetensors),
    "onnx": Format("files that onnxruntime runs, for any batch size", _always, _write_onnx),
    "eva": Format("a file in the layout of the official EVA code", _why_not_eva, _write_eva),
}
