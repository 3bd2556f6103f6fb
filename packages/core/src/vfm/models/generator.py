"""Diffusion models from outside: a folder in diffusers' layout becomes a GeneratorCheckpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from vfm.artifacts import GeneratorCheckpoint
from vfm.config import UserError
from vfm.models.sources import HUB, fetched, local_folder

DENOISERS = ("unet", "transformer")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
Prediction = Literal["epsilon", "v", "flow"]
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}


def import_generator(source: str, directory: Path) -> GeneratorCheckpoint:
    """Copies a diffusion model into `directory`: denoiser, scheduler and what else its folder has (VAE, text encoder).

    Args:
        source: a folder in diffusers' layout, also as `local-dir:folder`; or `hf-hub:org/model`.

    Raises:
        UserError: it is not there, not in diffusers' layout, its weights are pickled or do not fit its configuration,
            or diffusers is not installed.
    """
    folder = _folder(source)
    facts = read_facts(folder)
    _check_weights(folder / denoiser(folder))
    shutil.copytree(
        folder, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin", "*.ckpt", "*.fp16.*", ".*")
    )
    return GeneratorCheckpoint.create(directory, **facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """What `GeneratorCheckpoint` says of a folder in diffusers' layout.

    Raises:
        UserError: a part is missing, or has no conditioning by cross attention.
    """
    config = _read_json(folder / denoiser(folder) / "config.json")
    width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
    if isinstance(width, list):
        width = width[0]
    if not width:
        raise UserError(f"{folder}: its denoiser has no cross attention, so nothing can condition it")
    return {
        "sample_size": int(config.get("sample_size") or 64),
        "condition_width": int(width),
        "prediction": _prediction(_read_json(folder / SCHEDULER_FILE), folder),
    }


def denoiser(folder: Path) -> str:
    """The name of the denoiser's folder: `unet` or `transformer`.

    Raises:
        UserError: there is neither.
    """
    for name in DENOISERS:
        if (folder / name / "config.json").is_file():
            return name
    raise UserError(
        f"{folder}: not in diffusers' layout (neither unet/config.json nor transformer/config.json is there)"
    )


def _folder(source: str) -> Path:
    if folder := local_folder(source):
        return folder
    if not source.startswith(HUB):
        raise UserError(f"{source}: no such folder; a model of the hub is named hf-hub:org/model")
    wanted = {"allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"], "ignore_patterns": ["*.fp16.*"]}
    return Path(fetched(source, lambda: snapshot_download(source.removeprefix(HUB), **wanted)))


def _check_weights(folder: Path) -> None:
    """Compares names and shapes of the weights with the configuration, without reading the weights."""
    try:
        import diffusers
    except ImportError:
        raise UserError("models.generator needs diffusers: pip install vfm-diva") from None
    config = _read_json(folder / "config.json")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise UserError(f"{folder}: diffusers has no {config.get('_class_name')!r}")
    with torch.device("meta"):
        wanted = {key: list(value.shape) for key, value in kind.from_config(config).state_dict().items()}
    found = _shapes(folder)
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{folder}: its weights do not fit its configuration: {len(wrong)} differ, the first is {key} "
            f"({found.get(key, 'missing')}, wanted {wanted.get(key, 'nothing')})"
        )


def _shapes(folder: Path) -> dict[str, list[int]]:
    files = [file for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")) if ".fp16." not in file.name]
    if not files:
        raise UserError(f"{folder}: no safetensors here; pickled weights are not read")
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                shapes.update({key: content.get_slice(key).get_shape() for key in content.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{file}: not readable as safetensors: {error}") from None
    return shapes


def _prediction(scheduler: dict[str, Any], folder: Path) -> Prediction:
    if str(scheduler.get("_class_name", "")).startswith("FlowMatch"):
        return "flow"
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise UserError(f"{folder}: its scheduler predicts {kind!r}; {', '.join(_PREDICTIONS)} are known")
    return _PREDICTIONS[kind]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so this is not a model in diffusers' layout") from None
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON: {error}") from None
