"""Checks of the stages for multimodal language models before a run, without importing transformers."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import get_token

from vfm.models import blueprint, find_format
from vfm.plugin import AnnotatedImages, Preflight, UserError, how_to_install
from vfm_diva.mllm.lmms_folders import check_folder, check_model
from vfm_diva.mllm.lmms_logs import find_log
from vfm_diva.mllm.projector import read_projector
from vfm_diva.mllm.question_files import read_rows
from vfm_diva.mllm.stages import EvalLmms, EvalMllm, MllmPope, MllmQuestions, MllmTrain


def check_train(config: MllmTrain, ctx: Preflight) -> None:
    """Check that transformers is installed and has a layout for the vision tower, and that there are questions.

    Raises:
        UserError: If one of these checks fails.
    """
    check_transformers(config.kind)
    config.trained.check()
    if config.projector:
        read_projector(config.projector)
    clip = ctx.artifact(config.vision) if config.vision else None
    if clip:
        find_format("hf", blueprint(clip), str(config.vision))
    data = ctx.artifact(config.data)
    if data and not data.num_questions:
        raise UserError(f"{config.data}: the dataset has no questions to train on")


def check_evaluation(config: EvalMllm, ctx: Preflight) -> None:
    """Check that transformers is installed."""
    check_transformers(config.kind)


def check_questions(config: MllmQuestions, ctx: Preflight) -> None:
    """Check that there is a usable question.

    Raises:
        UserError: If no question is usable.
    """
    bad: list[str] = []
    rows = read_rows(config, lambda reason, where: bad.append(f"{where} ({reason})"))
    if next(rows, None) is None:
        raise UserError(f"no usable question in {config.path}{f': {bad[0]}' if bad else ''}")


def check_pope(config: MllmPope, ctx: Preflight) -> None:
    """Check the annotations if they exist already."""
    data = ctx.artifact(config.data)
    if data:
        check_exhaustive(data, config.data)


def check_exhaustive(data: AnnotatedImages, name: str) -> None:
    """Check that an object that is not annotated is absent, and that there are images.

    Raises:
        UserError: If one of these checks fails.
    """
    if data.federated:
        raise UserError(f"{name}: only some classes of an image are annotated, so no object is known to be absent")
    if not data.has_images:
        raise UserError(f"{name}: made with images: false; questions need the images")


def check_lmms(config: EvalLmms, ctx: Preflight) -> None:
    """Check that lmms-eval can be started, and check the models to run and the logs written elsewhere.

    Raises:
        UserError: If one of these checks fails. The message names the missing part.
    """
    if (config.models or config.folders) and not shutil.which(config.command[0]):
        raise UserError(
            f"{config.command[0]} is not installed, which runs lmms-eval in an environment of its own:"
            " pip install uv, or set `command`, or run it elsewhere and give its `logs`"
        )
    if config.models or config.folders:
        check_token(config)
    for ref in config.models:
        check_model(ref, ctx)
    for name, folder in config.folders.items():
        check_folder(Path(folder), name)
    for name, folder in config.logs.items():
        for task in config.tasks:
            find_log(Path(folder), task, name)


def check_token(config: EvalLmms) -> None:
    """Check that there is a Hugging Face token if lmms-eval runs here. Another command may have one elsewhere.

    Raises:
        UserError: If there is none.
    """
    if config.command == type(config).model_fields["command"].default and not get_token():
        raise UserError(
            "lmms-eval loads its benchmarks from Hugging Face with a token: run `hf auth login`, or set HF_TOKEN"
        )


def check_transformers(kind: str) -> None:
    """Check that transformers is installed.

    Raises:
        UserError: If it is not.
    """
    if not find_spec("transformers"):
        raise UserError(f"{kind} needs transformers: {how_to_install('vfm-diva[mllm]')}")
