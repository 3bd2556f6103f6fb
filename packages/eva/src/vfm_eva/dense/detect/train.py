"""Build the detector and its samples for `eva.detect`, and train."""

# N images, K classes, P pairs of an image and a class

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from vfm.data import BadSample, RepeatedEpochs, SampleDraw, TrainingData
from vfm.data.annotated import AnnotatedSource, ObjectArrays
from vfm.eval import CaptionedImage, images_panel
from vfm.models import (
    KeyReport,
    TransferRules,
    build_vision,
    known_checkpoint,
    load_vision,
    transfer_weights,
    vision_tower,
)
from vfm.plugin import (
    AnnotatedImages,
    Context,
    DenseCheckpoint,
    ImagesPanel,
    Preflight,
    UserError,
    check_dense_evaluations,
)
from vfm.train import fit, is_main
from vfm_eva.dense.detect.checkpoint import build_detector, load_head, predicted, read_settings
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.samples import DetectionInputs, MakeDetection, things_of
from vfm_eva.dense.detect.stages import EvaDetect
from vfm_eva.dense.detect.task import DetectTask
from vfm_eva.finetune.classifier import check_trained

NUM_IMAGES = 12  # of the report panel
BOX, OPACITY = (255, 60, 60), 0.4  # colour of boxes and masks


def check_eva_detect(config: EvaDetect, ctx: Preflight) -> None:
    """Check that the data have boxes and masks as needed, and that a known encoder takes the head.

    Raises:
        UserError: If something is wrong. The message describes the first mistake.
    """
    config.trained.check()
    data = ctx.artifact(config.data)
    if data:
        check_data(config, data)
    names = data.class_names if data else None
    check_dense_evaluations(config, predicted(config.detector), names, ctx.artifact)
    start = ctx.artifact(config.start) if config.start else None
    if start:
        read_settings(start)
    num_classes = len(data.class_names) if data else 2  # any number does for shapes
    planned = known_checkpoint(ctx, config.encoder) if config.encoder else nullcontext()
    with planned as encoder, torch.device("meta"):
        folder = start.path / start.encoder if start else None
        if encoder:
            folder = encoder.path
        if folder:
            visual = build_visual(config, folder)
            build_detector(visual, num_classes, config.detector)
            check_trained(config.trained, visual)


def check_data(config: EvaDetect, data: AnnotatedImages) -> None:
    """Check that a dataset has images, and boxes, and masks if the detector has them.

    Raises:
        UserError: If the check fails.
    """
    if not data.has_images:
        raise UserError(f"{config.data}: made with images: false, so there is nothing to train on")
    missing = [label for label in predicted(config.detector) if label not in data.labels]
    if missing:
        hint = "; set detector.masks: false" if missing == ["masks"] else ""
        labels = ", ".join(data.labels)
        raise UserError(f"{config.data}: eva.detect needs {missing[0]}, the dataset has {labels}{hint}")
    if not data.num_objects:
        raise UserError(f"{config.data}: expected annotated objects, the dataset has none")


def detect_eva(config: EvaDetect, ctx: Context) -> DenseCheckpoint:
    """Train a detector, and export it."""
    data = ctx.load(config.data)
    check_data(config, data)
    check_dense_evaluations(config, predicted(config.detector), data.class_names, ctx.load)
    model = _model(config, ctx, data)
    source = AnnotatedSource(data)
    class_images = count_images(source)
    num_empty = int((class_images == 0).sum() - (~np.array(data.things)).sum())  # stuff classes never have objects
    if is_main() and num_empty:
        ctx.warn(f"{config.data}: {num_empty} of {len(data.class_names)} classes have no object")
    is_federated = config.detector.cascade.loss == "federated"
    task = DetectTask(
        model,
        data.class_names,
        class_images=class_images if is_federated else None,
        federated_power=config.federated_power,
        trained=config.trained,
        decay_vectors=config.decay_vectors,
        seed=config.seed,
    )
    red, green, blue = (round(255 * value) for value in task.preprocess.mean)
    make = MakeDetection(
        source, config.detector.image_size, config.augmentation, config.detector.masks, (red, green, blue)
    )
    images = source.source
    if config.repeat_threshold:
        factors = repeat_factors(_trained(source), len(source), len(data.class_names), config.repeat_threshold)
        images.epochs = RepeatedEpochs(images.shard_sizes, factors, config.seed)
        if is_main():
            ctx.log(f"repeat factors: {factors.sum():.0f} images an epoch instead of {len(source)}")
    batches = TrainingData.of(config, images, make)
    if is_main():
        ctx.panel(first_samples_panel(batches, data.class_names, ctx.directory))
    fit(task, batches, config, ctx)
    return task.export(ctx.directory)


def count_images(source: AnnotatedSource) -> NDArray[np.int64]:
    """Count the images with each class."""
    pairs = _image_classes(_trained(source))
    return np.bincount(pairs[1], minlength=len(source.dataset.class_names))


def repeat_factors(objects: ObjectArrays, num_images: int, num_classes: int, threshold: float) -> NDArray[np.float64]:
    """Compute how often `vfm.data.RepeatedEpochs` repeats each image on average, (N,), at least 1.

    Args:
        objects: Objects of all images.
        num_images: Number of images, N.
        num_classes: Number of classes, K.
        threshold: Share of the images below which a class is rare.

    Source: Gupta et al. 2019, LVIS (arXiv:1908.03195), appendix B.3.
    """
    pairs = _image_classes(objects)
    share = np.bincount(pairs[1], minlength=num_classes) / num_images
    with np.errstate(divide="ignore"):
        # LVIS's rule (arXiv:1908.03195, section 5.4). An image counts by its rarest class.
        by_class = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[0], by_class[pairs[1]])
    return factors


def _image_classes(objects: ObjectArrays) -> NDArray[np.int64]:
    """List the pairs of an image and a class of its objects, (2, P), each once."""
    return np.unique(np.stack([objects.image, objects.labels]), axis=1)


def _trained(source: AnnotatedSource) -> ObjectArrays:
    objects = things_of(source, source.tables.all)
    return objects[~(objects.crowd | objects.ignored)]


def _model(config: EvaDetect, ctx: Context, data: AnnotatedImages) -> Detector:
    """Build the detector, with the weights of the encoder or of another detector."""
    start = ctx.load(config.start) if config.start else None
    encoder = ctx.load(config.encoder) if config.encoder else None
    folder = encoder.path if encoder else start.path / start.encoder  # type: ignore[union-attr]
    visual = build_visual(config, folder, load=True)
    if config.grad_checkpointing:
        visual.set_grad_checkpointing()  # type: ignore[operator]
    model = build_detector(visual, len(data.class_names), config.detector, seed=config.seed)
    if start:
        report = load_head(start, model, data.class_names)
        if is_main():
            ctx.log(f"weights of the head: {report.summary}")
            ctx.panel(report.panel("Weights of the head"))
    return model


def build_visual(config: EvaDetect, folder: Path, *, load: bool = False) -> nn.Module:
    """Build the encoder of a detector.

    If another patch size is set, patches are resampled and the grid stays the same.

    Args:
        config: Settings of the training.
        folder: Folder of the encoder's checkpoint.
        load: Load the weights.
    """
    original = vision_tower(build_vision(f"local-dir:{folder}"))
    size = config.patch_size or original.patch_size[0]
    arguments: dict[str, Any] = {"drop_path_rate": config.drop_path}
    if size == original.patch_size[0]:
        return load_vision(folder, **arguments) if load else build_vision(f"local-dir:{folder}", **arguments)
    # As many patches as before, so that positions are kept as they are and only patches are resampled.
    visual = build_vision(f"local-dir:{folder}", image_size=size * original.grid[0], patch_size=size, **arguments)
    if load:
        rules = TransferRules({}, {}, where="encoder", target="the encoder of the detector")
        transfer_weights(load_vision(folder).state_dict(), visual, rules, KeyReport())
    return visual


def first_samples_panel(
    data: TrainingData[DetectionInputs], class_names: Sequence[str], directory: Path
) -> ImagesPanel:
    """Show the crops of the first step with their boxes and masks.

    Args:
        data: Batches of the training run.
        class_names: Names of the classes.
        directory: Folder to write the images into.
    """
    shown = list(islice(_first_samples(data, class_names), NUM_IMAGES))
    note = f"The first {len(shown)} crops of the first step, after augmentation, with the objects that are trained."
    return images_panel(directory, "seen", "First training samples", shown, order=5, note=note)


def _first_samples(data: TrainingData[DetectionInputs], class_names: Sequence[str]) -> Iterator[CaptionedImage]:
    """Yield the samples of step 0 in training order. Bad samples are skipped, since training reports them."""
    for epoch, index in data.order().of_epochs(0, data.global_batch_size):
        try:
            inputs = data.make(data.source.sample(index, epoch), SampleDraw.of(data.seed, 0, index))
        except BadSample:
            continue
        names = [class_names[label] for label in inputs.labels.parts[0].tolist()]
        yield CaptionedImage(draw_inputs(inputs), ", ".join(dict.fromkeys(names)) or "no object")


def draw_inputs(inputs: DetectionInputs) -> Image.Image:
    """Draw a crop with the boxes and masks of its objects."""
    pixels = inputs.images.permute(1, 2, 0).numpy().astype(np.float32)
    if inputs.masks and len(inputs.masks.parts[0]):
        inside = inputs.masks.parts[0].numpy().any(axis=0)
        pixels[inside] += OPACITY * (np.array(BOX) - pixels[inside])
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for box in inputs.boxes.parts[0].tolist():
        pen.rectangle(box, outline=BOX, width=max(1, drawn.width // 300))
    return drawn
