"""Draw panels with the object counts by class and the first annotated images."""

# H, W height and width

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.annotated.source import AnnotatedSource
from vfm.data.samples.sample import BadSample
from vfm.interfaces import AnnotatedImages, Context, ImagesPanel, PanelImage, TablePanel

NUM_IMAGES = 12  # of the panel
SIDE = 256  # pixels of an image in it
CLASSES_SHOWN = 30  # a longer table is not read
OPACITY = 0.5  # of masks, so that the image stays visible beneath
Row = list[str | float | int | None]  # cells of a table


def add_annotation_panels(ctx: Context, dataset: AnnotatedImages) -> None:
    """Write the panels of a new dataset."""
    source = AnnotatedSource(dataset)
    if dataset.map_classes:
        names: list[Row] = [[name] for name in dataset.class_names]
        ctx.panel(TablePanel(title="Classes", order=20, columns=["class"], rows=names))
    else:
        _add_classes(ctx, source)
    if dataset.has_images:
        _add_images(ctx, source)


def palette(count: int) -> NDArray[np.uint8]:
    """Create distinct colours, (count, 3), with hues spaced by the golden ratio and two lightnesses."""
    number = np.arange(count)
    # Steps of the golden ratio keep any number of first hues far apart.
    hue = (0.1 + 0.618034 * number) % 1
    channels = np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.asarray((255 * channels * np.where(number % 2, 0.65, 1.0)[:, None]).astype(np.uint8))


def overlay(image: Image.Image, segments: NDArray[np.integer], colours: NDArray[np.uint8]) -> Image.Image:
    """Tint an image by the segment of each pixel.

    Args:
        image: The image.
        segments: Number of each pixel's segment, (H, W). Pixels with a negative number stay untinted.
        colours: Colour of each segment.
    """
    pixels = np.asarray(image, dtype=np.float32).copy()
    inside = segments >= 0
    pixels[inside] += OPACITY * (colours[segments[inside] % len(colours)] - pixels[inside])
    return Image.fromarray(pixels.astype(np.uint8))


def _add_classes(ctx: Context, source: AnnotatedSource) -> None:
    dataset = source.dataset
    objects = source.tables.all
    counts = np.bincount(objects.labels, minlength=len(dataset.class_names))
    pairs = np.unique(np.stack([objects.image, objects.labels]), axis=1)[1]
    images = np.bincount(pairs, minlength=len(counts))
    order = np.argsort(-counts, kind="stable")[:CLASSES_SHOWN].tolist()
    frequency = list(map(str, dataset.frequency))
    if not frequency:  # no object is left
        frequency = [""] * len(counts)
    note = f"{len(objects)} objects of {len(counts)} classes in {len(source)} images; format: {dataset.format}"
    rows: list[Row] = [[dataset.class_names[n], int(counts[n]), int(images[n]), frequency[n]] for n in order]
    columns = ["class", "objects", "images", "frequency"]
    ctx.panel(TablePanel(title="Classes", note=note, order=20, columns=columns, rows=rows))
    if dataset.bad_annotations:
        reasons: list[Row] = list(map(list, sorted(dataset.bad_annotations.items())))
        ctx.panel(TablePanel(title="Annotations left out", order=25, columns=["reason", "annotations"], rows=reasons))


def _add_images(ctx: Context, source: AnnotatedSource) -> None:
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    colours = palette(64)
    shown = []
    for number in range(min(len(source), NUM_IMAGES)):
        try:
            tinted = overlay(source.image(number), _segments(source, number), colours)
        except BadSample:
            continue
        tinted.thumbnail((SIDE, SIDE))
        file = f"panels/annotated-{number:02d}.jpg"
        tinted.save(ctx.directory / file, quality=90)
        labels = dict.fromkeys(source.objects(number).labels.tolist())
        names = [source.dataset.class_names[label] for label in labels]
        shown.append(PanelImage(file=file, caption=", ".join(names[:6])))
    if shown:
        ctx.panel(ImagesPanel(title="First samples with their labels", order=30, pictures=shown, width=192))


def _segments(source: AnnotatedSource, number: int) -> NDArray[np.integer]:
    if source.dataset.map_classes:
        return source.semantic(number)
    segments = np.full(source.sizes[number][::-1], -1, dtype=np.int64)
    for index, mask in enumerate(source.masks(number)):
        segments[mask] = index
    return segments
