"""Import of diffusion models: a folder in diffusers' layout becomes a GeneratorCheckpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from vfm.base import UserError
from vfm.interfaces import Context, GeneratorCheckpoint, Preflight
from vfm.models.clip.model_sources import existing_folder, model_folder
from vfm.models.generator.generator_parts import DENOISERS, WEIGHTS, check_parts, denoiser_folder, read_part
from vfm.models.stages import ImportGenerator
from vfm.models.weights import check_finite_weights
from vfm.storage.store_files import naming, reading

SCHEDULER_FILE = "scheduler/scheduler_config.json"
# The files that are copied or downloaded. Repositories also hold single-file copies of all parts, 5 GB each, weights in
# other formats, and parts that are not used here (safety checkers, image encoders).
_PARTS = (*DENOISERS, "vae", "movq", "text_encoder", "text_encoder_2", "text_encoder_3")
_PART_FILES = ("*.json", "diffusion_pytorch_model*.safetensors", "model*.safetensors")
NEEDED = (
    "model_index.json",
    *(f"{part}/{file}" for part, file in product(_PARTS, _PART_FILES)),
    *(f"tokenizer{suffix}/*" for suffix in ("", "_2", "_3")),
    "scheduler/*.json",
    "condition/*",  # in a prior trained here
    "pixels/*.json",
)
VARIANTS = ("*.fp16.*", "*.non_ema.*", "*.bin", "*.ckpt", "*/.*")  # never copied
Prediction = Literal["epsilon", "v", "flow"]
# Schedulers whose noise follows from betas. Others, such as EDM's, have different fractions of signal.
BETA_SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
BETAS = ("beta_start", "beta_end", "beta_schedule")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
CONTEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "cross_attention_dim")  # the first one that is there
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}


def import_generator_checkpoint(config: ImportGenerator, ctx: Context) -> GeneratorCheckpoint:
    """Run `models.generator`.

    The model is downloaded if it is not local, and copied.
    """
    return import_generator(config.source, ctx.directory)


def check_import_generator(config: ImportGenerator, ctx: Preflight) -> None:
    """Check the parts of a local model without reading weights. For a model on the hub, only its name is checked."""
    folder = existing_folder(config.source)
    if folder:
        read_facts(folder)
        check_parts(folder, config.source)


def import_generator(source: str, directory: Path) -> GeneratorCheckpoint:
    """Copy a diffusion model into a folder.

    The copy has the denoiser, the scheduler and any other parts (VAE, text encoder). Only the files in `NEEDED` are
    copied.

    Args:
        source: A folder in diffusers' layout, also as `local-dir:folder`, or `hf-hub:org/model`, with `@revision` for a
            commit, branch or tag.
        directory: Folder of the copy.

    Raises:
        UserError: If diffusers is not installed, the model does not exist or is not in diffusers' layout, or a
            tokenizer is missing. It is also raised if the weights of the denoiser, VAE or text encoders are missing,
            pickled, of half precision only, not finite, or do not fit their configuration.
    """
    folder = model_folder(source, NEEDED, VARIANTS)
    facts = read_facts(folder)
    check_parts(folder, source)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and _is_needed(name):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, directory / name)
            if WEIGHTS.fullmatch(file.name):
                _check_finite(file)
    return GeneratorCheckpoint.create(directory, **facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts of a `GeneratorCheckpoint` from a folder in diffusers' layout.

    Raises:
        UserError: If a part is missing, or the denoiser has nothing to be conditioned by.
    """
    file = folder / denoiser_folder(folder) / "config.json"
    config = read_part(file)
    with naming(file, "the configuration of a denoiser"):
        size = int(config.get("sample_size") or 64)
        width = next(filter(None, map(config.get, CONTEXT_WIDTHS)), 0)
        if isinstance(width, list):  # a width for each block of the U-Net
            width = width[0]
        is_vector = config.get("_class_name") == "DiTTransformer2DModel" or config.get("addition_embed_type") == "image"
        condition = 0 if is_vector else int(width)
    if not condition and not is_vector:
        raise UserError(f"{file}: expected a denoiser with cross-attention, got none of {', '.join(CONTEXT_WIDTHS)}")
    prediction = _prediction(folder / SCHEDULER_FILE)
    return {"sample_size": size, "condition_width": condition, "prediction": prediction}


def _is_needed(name: str) -> bool:
    return _fits_any(name, NEEDED) and not _fits_any(name, VARIANTS)


def _fits_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _check_finite(file: Path) -> None:
    """Check a file's weights one tensor at a time, since together they may exceed the memory."""
    with reading(file, "safetensors"), safe_open(file, framework="pt") as content:
        for key in content.keys():  # noqa: SIM118
            check_finite_weights({key: content.get_tensor(key)}, file)


def _prediction(file: Path) -> Prediction:
    scheduler = read_part(file)
    name = scheduler.get("_class_name")
    if name in FLOW_SCHEDULERS:  # these have no `prediction_type`
        return "flow"
    if name not in BETA_SCHEDULERS:
        known = ", ".join((*BETA_SCHEDULERS, *FLOW_SCHEDULERS))
        raise UserError(f"{file}: _class_name: expected one of {known}, got {name}")
    if scheduler.get("trained_betas") is None:
        for key in BETAS:
            if key not in scheduler:
                raise UserError(f"{file}: expected {', '.join(BETAS)}, got no {key}")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise UserError(f"{file}: prediction_type: expected one of {', '.join(_PREDICTIONS)}, got {prediction!r}")
    return _PREDICTIONS[prediction]
