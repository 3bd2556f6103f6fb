"""Panels of a stage that indexes images: its shards, its bad samples, and the first images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vfm.data.index.index import BadRow
from vfm.data.index.source import Source, open_dataset
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Context, ImageDataset, ImagesPanel, PanelImage, TablePanel

NUM_IMAGES = 12
IMAGE_SIDE = 192
SHARDS_SHOWN = 20


def add_dataset_panels(ctx: Context, dataset: ImageDataset, bad: Sequence[BadRow] = ()) -> None:
    """Write the panels of a dataset that has just been indexed."""
    source = open_dataset(dataset)
    shards = source.index.shards
    ctx.panel(
        TablePanel(
            title="Shards",
            note=f"{len(shards)} shards, {len(source)} samples"
            + (f"; the first {SHARDS_SHOWN} shards:" if len(shards) > SHARDS_SHOWN else ""),
            order=20,
            columns=["file", "format", "samples", "bytes"],
            rows=[[one.path, one.format, one.num_samples, one.size] for one in shards[:SHARDS_SHOWN]],
        )
    )
    if bad:
        ctx.panel(_bad_panel(bad, len(source) + len(bad)))
    if pictures := _first_images(ctx, source):
        ctx.panel(ImagesPanel(title="First samples", order=30, pictures=pictures))


def _bad_panel(bad: Sequence[BadRow], total: int) -> TablePanel:
    first = {row.reason: row.where for row in reversed(bad)}
    return TablePanel(
        title="Bad samples",
        note=f"{len(bad)} of {total} samples were left out.",
        order=25,
        columns=["reason", "samples", "first"],
        rows=[[reason, count, first[reason]] for reason, count in Counter(row.reason for row in bad).most_common()],
    )


def _first_images(ctx: Context, source: Source) -> list[PanelImage]:
    """Save small copies of the first images in the artifact's folder, each with its first caption or its class."""
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[PanelImage] = []
    for index in range(min(len(source), 2 * NUM_IMAGES)):
        try:
            sample = source[index]
            image = decode_image(sample.image, source.where(index))
        except BadSample:  # possible in shards that were counted but not read; a training counts it
            continue
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        file = f"panels/sample-{len(pictures):02d}.jpg"
        image.save(ctx.directory / file, quality=90)
        pictures.append(PanelImage(file=file, caption=_caption(sample, source)))
        if len(pictures) == NUM_IMAGES:
            break
    return pictures


def _caption(sample: Sample, source: Source) -> str:
    if sample.label is not None and source.class_names:
        return source.class_names[sample.label]
    return next((texts[0] for texts in sample.texts.values()), "")
