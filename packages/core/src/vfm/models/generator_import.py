"""Importing diffusion models: a folder in diffusers' layout becomes a GeneratorCheckpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from vfm.artifacts import GeneratorCheckpoint
from vfm.config import UserError
from vfm.models.model_sources import fetch, local_folder
from vfm.stage import Context
from vfm.stages.models import HUB_PREFIX, ImportGenerator
from vfm.store_files import read_record, reading

DENOISERS = ("unet", "transformer")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
Prediction = Literal["epsilon", "v", "flow"]
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}


def import_generator_checkpoint(config: ImportGenerator, ctx: Context) -> GeneratorCheckpoint:
    """Run `models.generator`: download the model if it is not local, and copy it."""
    return import_generator(config.source, ctx.directory)


def import_generator(source: str, directory: Path) -> GeneratorCheckpoint:
    """Copy a diffusion model into `directory`: denoiser, scheduler and any other parts (VAE, text encoder).

    Args:
        source: a folder in diffusers' layout, also as `local-dir:folder`; or `hf-hub:org/model`.
        directory: folder of the copy.

    Raises:
        UserError: the model does not exist or is not in diffusers' layout, its weights are pickled or do not fit its
            configuration, or diffusers is not installed.
    """
    folder = _find_folder(source)
    facts = read_facts(folder)
    _check_weights(folder / denoiser_folder(folder))
    shutil.copytree(
        folder, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin", "*.ckpt", "*.fp16.*", ".*")
    )
    return GeneratorCheckpoint.create(directory, **facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a `GeneratorCheckpoint` for a folder in diffusers' layout.

    Raises:
        UserError: a part is missing, or the denoiser has no cross-attention.
    """
    config = _read_json(folder / denoiser_folder(folder) / "config.json")
    width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
    if isinstance(width, list):
        width = width[0]
    if not width:
        raise UserError(f"{folder}: its denoiser has no cross-attention, so it cannot be conditioned")
    return {
        "sample_size": int(config.get("sample_size") or 64),
        "condition_width": int(width),
        "prediction": _prediction(_read_json(folder / SCHEDULER_FILE), folder),
    }


def denoiser_folder(folder: Path) -> str:
    """Return the name of the denoiser's folder: `unet` or `transformer`.

    Raises:
        UserError: neither exists.
    """
    for name in DENOISERS:
        if (folder / name / "config.json").is_file():
            return name
    raise UserError(f"{folder}: not in diffusers' layout (neither unet/config.json nor transformer/config.json exists)")


def _find_folder(source: str) -> Path:
    if folder := local_folder(source):
        return folder
    if not source.startswith(HUB_PREFIX):
        raise UserError(f"{source}: no such folder; write a model of the hub as hf-hub:org/model")
    files = {"allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"], "ignore_patterns": ["*.fp16.*"]}
    return Path(fetch(source, lambda: snapshot_download(source.removeprefix(HUB_PREFIX), **files)))


def _check_weights(folder: Path) -> None:
    """Compare names and shapes of the weights with the configuration, without reading the weights."""
    try:
        import diffusers
    except ImportError:
        raise UserError("models.generator needs diffusers: pip install vfm-diva") from None
    config = _read_json(folder / "config.json")
    model_class = getattr(diffusers, str(config.get("_class_name")), None)
    if model_class is None:
        raise UserError(f"{folder}: diffusers has no {config.get('_class_name')!r}")
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in model_class.from_config(config).state_dict().items()}
    found = _shapes(folder)
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{folder}: its weights do not fit its configuration: {len(wrong)} keys differ, first {key}: expected "
            f"{expected.get(key, 'no such key')}, got {found.get(key, 'no such key')}"
        )


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a folder's safetensors files, which may be several shards."""
    files = [file for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")) if ".fp16." not in file.name]
    if not files:
        raise UserError(f"{folder}: no safetensors; pickled weights are not read")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with reading(file, "safetensors"), safe_open(file, framework="pt") as content:
            shapes.update({key: content.get_slice(key).get_shape() for key in content.keys()})  # noqa: SIM118
    return shapes


def _prediction(scheduler: dict[str, Any], folder: Path) -> Prediction:
    if str(scheduler.get("_class_name", "")).startswith("FlowMatch"):  # these have no `prediction_type`
        return "flow"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise UserError(
            f"{folder}: prediction_type of its scheduler: expected one of {', '.join(_PREDICTIONS)}, got {prediction!r}"
        )
    return _PREDICTIONS[prediction]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: missing, so this is not a model in diffusers' layout")
    return read_record(file)
