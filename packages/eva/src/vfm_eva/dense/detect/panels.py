"""The first crops of a training with their objects, for the report: a wrong label or a wrong scale is seen at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vfm.data import BadSample, SampleDraw, TrainingData
from vfm.eval import CaptionedImage, images_panel
from vfm.plugin import ImagesPanel
from vfm_eva.dense.detect.samples import DetectionInputs

NUM_IMAGES = 12
BOX, OPACITY = (255, 60, 60), 0.4  # colour of boxes and masks


def first_samples_panel(
    data: TrainingData[DetectionInputs], class_names: Sequence[str], directory: Path
) -> ImagesPanel:
    """Write the first step's crops with boxes and masks into `directory`; return their panel."""
    shown = list(islice(_first_samples(data, class_names), NUM_IMAGES))
    note = f"The first {len(shown)} crops of the first step, after augmentation, with the objects that are trained."
    return images_panel(directory, "seen", "First training samples", shown, order=5, note=note)


def _first_samples(data: TrainingData[DetectionInputs], class_names: Sequence[str]) -> Iterator[CaptionedImage]:
    """Yield the samples of step 0 in the training's order; bad ones are left out here, the training reports them."""
    for epoch, index in data.order().of_epochs(0, data.global_batch_size):
        try:
            made = data.make(data.source.sample(index, epoch), SampleDraw.of(data.seed, 0, index))
        except BadSample:
            continue
        names = [class_names[label] for label in made.labels.parts[0].tolist()]
        yield CaptionedImage(draw_inputs(made), ", ".join(dict.fromkeys(names)) or "no object")


def draw_inputs(made: DetectionInputs) -> Image.Image:
    """Return one crop with the boxes and the masks of its objects."""
    pixels = made.images.permute(1, 2, 0).numpy().astype(np.float32)
    if made.masks and len(made.masks.parts[0]):
        inside = made.masks.parts[0].numpy().any(axis=0)
        pixels[inside] += OPACITY * (np.array(BOX) - pixels[inside])
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for box in made.boxes.parts[0].tolist():
        pen.rectangle(box, outline=BOX, width=max(1, drawn.width // 300))
    return drawn
