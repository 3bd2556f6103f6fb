"""Build the classifier for `eva.video`, load the encoder's weights, and train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vfm.data import TrainingData
from vfm.data.videos import VideoSource
from vfm.models import (
    KeyReport,
    build_vision,
    check_vision_transformer,
    known_checkpoint,
    load_state_dict,
    set_class_names,
    vision_preprocess,
)
from vfm.plugin import (
    ClipCheckpoint,
    Context,
    Preflight,
    UserError,
    VideoClassifier,
    VisionCheckpoint,
    check_class_names,
)
from vfm.train import fit, is_main
from vfm_eva.finetune.classifier import check_trained
from vfm_eva.finetune.finetune import init_head, load_encoder_weights
from vfm_eva.video.checkpoint import VIDEO_WEIGHTS_FILE, video_state
from vfm_eva.video.clips import MakeClips
from vfm_eva.video.encoders import image_checkpoint
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import EvaVideo
from vfm_eva.video.task import VideoTask
from vfm_eva.video.time import interpolate_positions

POOLS = {"mean": "avg", "token": "token", "attentive": None}


def check_eva_video(config: EvaVideo, ctx: Preflight) -> None:
    """Check that the data have classes, and that a known encoder can be built.

    Raises:
        UserError: The first mistake.
    """
    config.trained.check()
    data = ctx.artifact(config.data)
    if data:
        check_class_names(data.class_names, config.data)
    class_names = data.class_names if data else ["a", "b"]  # any names do for shapes
    with known_checkpoint(ctx, config.encoder) as planned, torch.device("meta"):
        source = ctx.artifact(config.encoder) or planned
        if source and not isinstance(source, ClipCheckpoint):
            model = build_model(config, image_checkpoint(source, source.path), class_names)
            check_trained(config.trained, model.visual)


def train_video(config: EvaVideo, ctx: Context) -> VideoClassifier:
    """Train a video classifier, and export it."""
    data = ctx.load(config.data)
    check_class_names(data.class_names, config.data)
    source = ctx.load(config.encoder)
    with TemporaryDirectory() as folder:  # each process has its folder
        checkpoint = image_checkpoint(source, Path(folder))
        model = build_model(config, checkpoint, data.class_names)
        report = load_weights(model, checkpoint, source, data.class_names)
    if is_main():
        ctx.log(f"weights of the encoder: {report.summary}")
        ctx.panel(report.panel("Weights of the encoder"))
    task = video_task(config, model, data.class_names)
    make = MakeClips(config.clip, task.preprocess.image_size, config.augmentation)
    fit(task, TrainingData.of(config, VideoSource.of(data), make), config, ctx)
    return task.export(ctx.directory)


def video_task(config: EvaVideo, model: VideoTransformer, class_names: list[str]) -> VideoTask:
    """Create the training task for a classifier.

    Args:
        config: Settings of the training.
        model: Result of `build_model`.
        class_names: Names of the classes.
    """
    model.set_grad_checkpointing(config.grad_checkpointing)
    return VideoTask(
        model,
        config.clip,
        class_names,
        trained=config.trained,
        label_smoothing=config.label_smoothing,
        mixup=config.augmentation.mixup,
        cutmix=config.augmentation.cutmix,
        seed=config.seed,
    )


def build_model(config: EvaVideo, checkpoint: VisionCheckpoint, class_names: Sequence[str]) -> VideoTransformer:
    """Build the classifier with a new head of small weights. Encoder weights are not loaded.

    Args:
        config: Settings of the training.
        checkpoint: Encoder to start from.
        class_names: Names of the classes.

    Raises:
        UserError: If the encoder is no vision transformer, or lacks a part that the settings need.
    """
    attentive = config.video.pool == "attentive"
    num_outputs = 0 if attentive else len(class_names)  # an attentive head is not part of the encoder
    name = f"local-dir:{checkpoint.path}"
    check_vision_transformer(name)
    visual = build_vision(
        name,
        image_size=config.image_size or checkpoint.image_size,
        num_classes=num_outputs,
        global_pool=POOLS[config.video.pool],
        drop_path_rate=config.drop_path,
        seed=config.seed,
    )
    side = vision_preprocess(visual).image_size
    model = VideoTransformer(visual, config.clip.num_frames, config.video, len(class_names), config.seed + 1)
    if side % model.trunk.patch_size:
        raise UserError(f"image_size must be a multiple of the patch size {model.trunk.patch_size}, got {side}")
    if not attentive:
        set_class_names(visual, class_names)
        init_head(visual.head, config.head_init_scale, config.seed + 1)
    return model


def load_weights(
    model: VideoTransformer,
    checkpoint: VisionCheckpoint,
    source: VisionCheckpoint | ClipCheckpoint | VideoClassifier,
    class_names: Sequence[str],
) -> KeyReport:
    """Load the encoder's weights, and the video parts of a video classifier.

    Head rows are matched by class name. Positions are interpolated to the number of frames and the grid. Parts that the
    source lacks keep initial weights.

    Args:
        model: The classifier.
        checkpoint: The encoder.
        source: Model that training starts from.
        class_names: Names of the classes.

    Returns:
        What happened to every weight.
    """
    report = load_encoder_weights(checkpoint, model.visual)
    model.start_from_encoder()  # again, now that the encoder's weights are loaded
    with torch.no_grad():
        if isinstance(source, VideoClassifier):
            _load_video_weights(model, source, class_names, report)
    return report


def _load_video_weights(
    model: VideoTransformer, source: VideoClassifier, class_names: Sequence[str], report: KeyReport
) -> None:
    file = source.path / VIDEO_WEIGHTS_FILE
    state = video_state(model)
    weights = load_state_dict(file) if file.is_file() else {}
    encoder = load_state_dict(source.path / source.encoder / "model.safetensors")
    for name, value in weights.items():
        # Rows of the head are matched by class name below.
        if name.startswith("attentive.linear."):
            continue
        if name in ("positions", "time", "attentive_time") and name in state:
            grid = model.trunk.grid if name == "positions" else (1, 1)
            value = interpolate_positions(value, len(state[name]), grid)
        if name in state and state[name].shape == value.shape:
            state[name].copy_(value)
        else:
            report.dropped[name] = "of another video model"
    head: Any = model.visual.head if model.attentive is None else model.attentive.linear
    if "head.weight" in encoder:
        tensors, prefix = encoder, "head."
    else:
        tensors, prefix = weights, "attentive.linear."
    rows = rows_by_name(class_names, source.class_names)
    for part in ("weight", "bias"):
        old = tensors.get(f"{prefix}{part}")
        new = getattr(head, part)
        if old is not None and old.shape[1:] == new.shape[1:]:
            copy_rows(new, old, rows)


def rows_by_name(wanted: Sequence[str], known: Sequence[str]) -> list[tuple[int, int]]:
    """Match rows by class name.

    Returns:
        (row in `wanted`, row in `known`) for each wanted class that is known.
    """
    known_rows = {name: number for number, name in enumerate(known)}
    return [(row, known_rows[name]) for row, name in enumerate(wanted) if name in known_rows]


def copy_rows(target: Tensor, source: Tensor, rows: Sequence[tuple[int, int]]) -> None:
    """Copy rows of a tensor to another tensor, in place.

    Args:
        target: Tensor to change.
        source: Tensor to copy from.
        rows: (row in `target`, row in `source`) for each copy.
    """
    for row, known in rows:
        target[row] = source[known]
