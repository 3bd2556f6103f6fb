"""Build vision encoders by timm, and save them as a VisionCheckpoint. timm loads the folder by `local-dir:`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from vfm.base import UserError, did_you_mean, drop_none, stripped
from vfm.interfaces import VisionCheckpoint
from vfm.models import small_models  # noqa: F401  (registers the small architectures)
from vfm.models.preprocess import Preprocess
from vfm.models.stages import FOLDER_PREFIX
from vfm.models.weights import load_state_dict, save_state_dict
from vfm.storage.store_files import reading

VISION_CONFIG_FILE = "config.json"
VISION_WEIGHTS_FILE = "model.safetensors"
MULTI_LABEL = "multi_label_classification"  # as transformers names it in config.json, where timm ignores it
MASKED_MODELLING_FILE = "masked_modelling.safetensors"  # layers that predict masked patches; only vfm reads it


def build_vision(
    model: str | Mapping[str, Any],
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
    seed: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a vision encoder by its timm name, with random or timm's pretrained weights.

    Args:
        model: A timm name (`vfm.models.small_models` adds small ones), optionally with the prefix `timm/`, `hf-hub:` or
            `local-dir:`. A mapping builds a custom encoder from an `architecture` (a timm name) and the arguments that
            differ, such as `{"architecture": "eva02_nano_patch4_32", "depth": 6}`.
        image_size: Side of the input in pixels. Default: the architecture's.
        num_classes: Outputs of the head, 0 for none. Default: the architecture's.
        pretrained: Load the weights that timm lists for the name.
        seed: Seed of the initial weights. torch's global generator is left unchanged.
        arguments: Arguments of timm's model (`drop_path_rate`, `global_pool`, ...).

    Raises:
        UserError: If the name is unknown, an argument is invalid, or the weights cannot be fetched.
    """
    if isinstance(model, Mapping):
        name = model.get("architecture", "")
        arguments = {**model, **arguments}
        arguments.pop("architecture", None)
    else:
        name = model
    name = name.removeprefix("timm/")
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise UserError(f"vision model {name!r} is not in timm{did_you_mean(name, timm.list_models())}")
    settings = drop_none({"img_size": image_size, "num_classes": num_classes, **arguments})
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        built = _create(name, pretrained, settings)
    if name.startswith("local-dir:"):
        _read_problem_type(built, Path(name.removeprefix("local-dir:")))
    return built


def load_vision(
    checkpoint: VisionCheckpoint | str | Path,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    **arguments: Any,
) -> nn.Module:
    """Load the encoder of a checkpoint folder. For another image size, timm resamples its position embeddings.

    Args:
        checkpoint: The artifact, or any folder in timm's layout.
        image_size: Side of the input in pixels. Default: the checkpoint's.
        num_classes: Outputs of the head. A number other than the checkpoint's gives a new head.
        device: Device of the weights.
        arguments: Arguments of timm's model that differ from the checkpoint (`drop_path_rate`, `global_pool`, ...).

    Raises:
        UserError: If the folder is not in timm's layout, or its weights do not fit.
    """
    if isinstance(checkpoint, VisionCheckpoint):
        folder = checkpoint.path
    else:
        folder = Path(checkpoint)
    if not (folder / VISION_CONFIG_FILE).is_file():
        raise UserError(f"{folder}: no vision checkpoint ({VISION_CONFIG_FILE} is missing)")
    with reading(folder / VISION_CONFIG_FILE, "the configuration of an encoder"):
        model = build_vision(f"local-dir:{folder}", image_size=image_size, pretrained=True, **arguments)
    if num_classes not in (None, model.num_classes):
        # After loading: given `num_classes` itself, timm no longer checks for missing weights.
        model.reset_classifier(num_classes)  # type: ignore[operator]
        model.problem_type = ""  # type: ignore[assignment]
    return model.to(device)


def save_vision(model: nn.Module, directory: Path) -> VisionCheckpoint:
    """Save an encoder in timm's layout.

    The attribute `masked_modelling`, if the encoder has one, holds the additions of masked pre-training (`mask_token`,
    `head.*`, `decoder.*`). They are saved in a separate file, so that the training can be resumed.

    Args:
        model: The encoder.
        directory: Folder for `config.json` with its `model_args`, and `model.safetensors`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_state_dict(model.state_dict(), directory / VISION_WEIGHTS_FILE)
    added = masked_modelling(model)
    if added:
        save_state_dict(added, directory / MASKED_MODELLING_FILE)
    return save_vision_config(model, directory)


def save_vision_config(model: nn.Module, directory: Path) -> VisionCheckpoint:
    """Save only an encoder's configuration. `build_vision` reads it by `local-dir:`."""
    size = get_model_input_config(model)["input_size"]
    # timm writes the size of its own weights for a model that takes images of any size, such as DINOv3.
    data_config = {"input_size": size} if size != model.pretrained_cfg["input_size"] else None  # type: ignore[index]
    model_config = {"problem_type": MULTI_LABEL} if has_independent_labels(model) else None
    save_config_for_hf(model, directory / VISION_CONFIG_FILE, model_config=model_config, data_config=data_config)
    config = json.loads((directory / VISION_CONFIG_FILE).read_text(encoding="utf-8"))
    return VisionCheckpoint.create(
        directory,
        architecture=config["architecture"],
        image_size=vision_preprocess(model).image_size,
        width=config["num_features"],
        num_classes=config["num_classes"],
    )


def masked_modelling(model: nn.Module) -> dict[str, Tensor]:
    """Get the mask token, head and decoder of an encoder's masked pre-training by name; empty if it has none."""
    added: dict[str, Tensor] = getattr(model, "masked_modelling", {})
    return added


def read_masked_modelling(directory: Path) -> dict[str, Tensor]:
    """Load the mask token, head and decoder that `save_vision` has saved in a folder; empty if it has none."""
    file = directory / MASKED_MODELLING_FILE
    if not file.is_file():
        return {}
    return load_state_dict(file)


def vision_preprocess(model: nn.Module) -> Preprocess:
    """Find the preprocessing of a timm encoder, at its current image size."""
    size = get_model_input_config(model)["input_size"]
    return Preprocess.from_timm({**resolve_model_data_config(model), "input_size": size})


def set_class_names(model: nn.Module, names: Sequence[str], *, independent: bool = False) -> None:
    """Set the names of a timm classifier's outputs, one for each output.

    They are stored as `label_names` in timm's configuration. `save_vision` writes and `load_vision` reads them.

    Args:
        model: The classifier.
        names: Names of its outputs, in order.
        independent: An image can have several of these labels, so that the probability of each is the sigmoid of its
            output. Stored as transformers' `problem_type`.
    """
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.problem_type = MULTI_LABEL if independent else ""  # type: ignore[assignment]
    model.pretrained_cfg = {**config, "num_classes": len(names), "label_names": list(names)}  # type: ignore[assignment]


def has_independent_labels(model: nn.Module) -> bool:
    """Check whether the probability of each output of a classifier is its sigmoid, not part of a softmax."""
    return getattr(model, "problem_type", "") == MULTI_LABEL


def class_names_of(model: nn.Module) -> list[str]:
    """List the names of a timm classifier's outputs in order; empty if its configuration has none."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):  # timm lets ids have gaps
        numbers = range(int(model.num_classes))  # type: ignore[arg-type]
        names = [str(names.get(number, names.get(str(number), number))) for number in numbers]
    if len(names) == model.num_classes:
        return list(names)
    return []


def _read_problem_type(model: nn.Module, folder: Path) -> None:
    """Set the problem type that a folder's configuration has for its head, if the model has that head."""
    config = json.loads((folder / VISION_CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("problem_type") == MULTI_LABEL and config.get("num_classes") == model.num_classes:
        model.problem_type = MULTI_LABEL  # type: ignore[assignment]


def _weights_of(name: str) -> str:
    """Find the file of weights that timm reads in a folder, for an error. Other names stay as they are."""
    if not name.startswith(FOLDER_PREFIX):
        return f"vision model {name!r}"
    folder = Path(name.removeprefix(FOLDER_PREFIX))
    names = (VISION_WEIGHTS_FILE, "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
    files = filter(Path.is_file, map(folder.joinpath, names))
    return str(next(iter([*files, *sorted(folder.glob("*.safetensors"))]), folder))


def _create(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    """Call timm's `create_model`, and turn its many exception types into one line."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise UserError(f"vision model {name!r}: {error}") from None
    except SafetensorError as error:
        raise UserError(f"{_weights_of(name)}: not readable as safetensors: {error}") from None
    except (RuntimeError, ValueError, AssertionError, OSError, KeyError) as error:
        lines = stripped(str(error).splitlines())
        raise UserError(f"vision model {name!r}: {' '.join(lines[:3]) or type(error).__name__}") from None
    return model
