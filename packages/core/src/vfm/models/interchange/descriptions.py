"""Describe the library and architecture of files of weights, and how commands name them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from vfm.base import UserError
from vfm.models.clip import clip_config
from vfm.models.clip.open_clip_names import open_clip_architecture
from vfm.models.interchange import eva_import
from vfm.models.interchange.eva_layouts import layout_of
from vfm.models.interchange.timm_names import timm_architecture
from vfm.models.interchange.transformers_import import check_transformers_encoder
from vfm.models.model_description import ModelDescription
from vfm.models.transformers_folders.encoders import DEFAULTS, is_transformers_encoder, timm_source
from vfm.models.weights import read_checkpoint, tensors_of
from vfm.storage.store_files import read_record

TWO_TOWERS = ("clip", "siglip", "siglip2")  # types of models that `models.clip` reads
ARCHITECTURES = ("arch", "model", "architecture", "model_name")  # names of an architecture in a trainer's record


def describe_weights(path: str) -> ModelDescription:
    """Describe a file of weights."""
    file = Path(path)
    try:
        content = read_checkpoint(file)
        tensors = tensors_of(content, file)
    except UserError as error:
        return ModelDescription("a file of torch", problems=[str(error).removeprefix(f"{path}: ")])
    kind = "safetensors" if file.suffix == ".safetensors" else "torch's pickle"
    description = ModelDescription(f"weights ({kind})", facts=[_size(tensors), *_training_facts(content)])
    if all("mm_projector." in key for key in tensors):
        widths = sorted({tensor.shape[-1] for tensor in tensors.values() if tensor.ndim == 2})
        description.format = f"a projector of LLaVA's pre-training, {description.format}"
        description.facts += [f"widths: {', '.join(map(str, widths))}", f"a start: projector: {path} in mllm.train"]
        return description
    try:
        if layout_of(tensors) == "clip":
            _describe_clip(description, path, tensors)
        else:
            _describe_encoder(description, path, content, tensors)
    except UserError as error:
        description.problems.append(str(error).removeprefix(f"{path}: "))
    return description


def describe_folder(path: str) -> ModelDescription | None:
    """Describe a folder in the layout of open_clip, timm, transformers or diffusers. Other folders give None."""
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        record = read_record(folder / "model_index.json")
        return ModelDescription("a pipeline of diffusers", facts=[f"pipeline: {record.get('_class_name')}"])
    if (folder / clip_config.CONFIG_FILE).is_file():
        return ModelDescription("a CLIP model in open_clip's layout", path)
    if not (folder / "config.json").is_file():
        return None
    record = read_record(folder / "config.json")
    if "architecture" in record:
        facts = [f"architecture: {record['architecture']}", f"classes: {record.get('num_classes', 0)}"]
        return ModelDescription("an encoder in timm's layout", path, facts)
    kind = record.get("model_type")
    description = ModelDescription("a model of transformers", facts=[f"model type: {kind}"])
    if kind in TWO_TOWERS:
        description.model = path
    elif is_transformers_encoder(folder):
        _describe_transformers_encoder(description, folder)
    else:
        allowed = ", ".join((*TWO_TOWERS, *DEFAULTS))
        description.problems.append(f"expected a model of the type {allowed}, got {kind}")
    return description


def _describe_transformers_encoder(description: ModelDescription, folder: Path) -> None:
    try:
        check_transformers_encoder(folder)
    except UserError as error:
        description.problems.append(str(error).removeprefix(f"{folder}: "))
        return
    source = timm_source(folder)
    size = f"{source['img_size']} px, patches of {source['patch_size']} px"
    description.facts.append(f"an encoder: width {source['embed_dim']}, {source['depth']} blocks, {size}")
    description.model = str(folder)


def _size(tensors: Mapping[str, Tensor]) -> str:
    count = 0
    types = set()
    for tensor in tensors.values():
        count += tensor.numel()
        types.add(str(tensor.dtype).removeprefix("torch."))
    return f"parameters: {count:,} in {len(tensors):,} tensors ({', '.join(sorted(types))})"


def _training_facts(content: Any) -> list[str]:
    """List the numbers that trainers save, such as epoch, step and score."""
    if not isinstance(content, Mapping):
        return []
    names = ("epoch", "step", "global_step", "metric", "best_acc1")
    return [f"{name}: {content[name]}" for name in names if isinstance(content.get(name), int | float)]


def _describe_clip(description: ModelDescription, path: str, tensors: Mapping[str, Tensor]) -> None:
    description.format = f"a CLIP model, {description.format}"
    if eva_import.is_official(tensors):
        eva_import.clip_architecture(tensors, path)
        description.model = path
        return
    name = open_clip_architecture(tensors)
    if name:
        description.facts.append(f"architecture: {name} of open_clip, by its shapes")
        description.model = f"{name},{path}"
    else:
        description.problems.append("no CLIP model of open_clip has these shapes; give its name: NAME,FILE")


def _describe_encoder(description: ModelDescription, path: str, content: Any, tensors: Mapping[str, Tensor]) -> None:
    if eva_import.is_official(tensors):
        eva_import.vision_architecture(tensors, path)
        description.format, description.model = f"an encoder of EVA, {description.format}", path
        return
    named = _named_architecture(content)
    name = named or timm_architecture(tensors)
    if name:
        by = "as the file says" if named else "by its shapes"
        description.facts.append(f"architecture: {name} of timm, {by}")
        description.model = f"{name},{path}"
    else:
        description.problems.append("no architecture of timm has these shapes; give its name: NAME,FILE")


def _named_architecture(content: Any) -> str:
    """Find the name of timm that a trainer saved next to the weights."""
    if not isinstance(content, Mapping):
        return ""
    arguments = content.get("args")
    records = [content, vars(arguments) if isinstance(arguments, Namespace) else arguments]
    for record in records:
        for key in ARCHITECTURES:
            name = record.get(key) if isinstance(record, Mapping) else None
            if isinstance(name, str) and timm.is_model(name.split(".")[0]):
                return name.split(".")[0]
    return ""
