"""What a CLIP training shows beside its curves: pictures as the model met them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from vfm.data.loader import TrainingData, sample_seed
from vfm.data.sample import BadSample
from vfm.eval.pictures import Shown, images_panel
from vfm.panels import ImagesPanel
from vfm_clip.pairs import MakePair

NUM_PICTURES = 16
MAX_CAPTION = 160  # letters shown


def seen_panel(data: TrainingData, make: MakePair, directory: Path) -> ImagesPanel:
    """A sheet of the first step's samples, each cropped and captioned as the model met it."""
    shown = list(islice(_first_samples(data, make), NUM_PICTURES))
    note = f"The first {len(shown)} samples of the first step, after augmentation, with the caption drawn for each."
    return images_panel(directory, "seen", "What the model saw", shown, order=5, note=note)


def _first_samples(data: TrainingData, make: MakePair) -> Iterator[Shown]:
    """Samples of step 0 in the training's own order; bad ones are passed over, the training tells them."""
    for epoch, index in data.order().of_epochs(0, data.global_batch_size):
        seed = sample_seed(data.seed, 0, index)
        try:
            sample = data.source.sample(index, epoch)
            caption = make.caption(sample, seed)
            pixels = make.transform(sample.image, seed, sample.key).permute(1, 2, 0).numpy()
        except BadSample:
            continue
        yield Shown(Image.fromarray(pixels), caption if len(caption) <= MAX_CAPTION else caption[:MAX_CAPTION] + "…")
