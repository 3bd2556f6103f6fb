"""Checks of the models that `eval.lmms` runs. lmms-eval itself would notice a wrong model only after minutes."""

from __future__ import annotations

from pathlib import Path

from vfm.plugin import Artifact, Preflight, Ref, UserError, store_files
from vfm_diva.mllm.stages import MllmTrain

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"
MODEL_TYPES = ("llava", "llava_next", "llava_onevision")  # types that lmms-eval's `llava_hf` runs
CLASS_TOKEN = "lmms-eval gives a model the patches of an image, but this one reads the class token (tokens: class)"


def check_folder(folder: Path, name: str) -> None:
    """Check that a folder has a LLaVA model in transformers' layout, with its processor.

    Raises:
        UserError: If the folder has no such model.
    """
    expected = "expected a LLaVA model in transformers' layout"
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{name}: {folder} has no {CONFIG_FILE}; {expected}")
    config = store_files.read_record(file)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        allowed = ", ".join(MODEL_TYPES)
        raise UserError(f"{name}: {file}: {expected} ({allowed}), got model_type {model_type}")
    if config.get("image_seq_length") == 1:
        raise UserError(f"{name}: {file}: image_seq_length 1: {CLASS_TOKEN}")
    if not (folder / PROCESSOR_FILE).is_file():
        raise UserError(f"{name}: {folder} has no {PROCESSOR_FILE}, without which images become no tokens")


def check_model(ref: Ref[Artifact], ctx: Preflight) -> None:
    """Check a model of an earlier stage, or the configuration of a stage that has not run.

    Raises:
        UserError: If it is not a LLaVA model.
    """
    artifact = ctx.artifact(ref)
    if artifact:
        check_folder(artifact.path, ref)
    stage = ctx.stage(ref)
    while isinstance(stage, MllmTrain) and stage.init:
        stage = ctx.stage(stage.init)
    if isinstance(stage, MllmTrain) and stage.tokens == "class":
        raise UserError(f"{ref}: {CLASS_TOKEN}")
    written = getattr(stage, "format", "llava")
    if written != "llava":
        raise UserError(f"{ref}: expected a LLaVA model (format: llava), got format: {written}")
