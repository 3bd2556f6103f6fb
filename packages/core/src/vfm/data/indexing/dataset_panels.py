"""Draw panels with the shards, the bad samples, and the first images of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vfm.data.index.index import BadRow
from vfm.data.index.source import Source, open_dataset
from vfm.data.ledger.ledger import LEDGER_FILE
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Context, ImageDataset, ImagesPanel, PanelImage, TablePanel

NUM_IMAGES = 12  # of the panel
IMAGE_SIDE = 192  # pixels
SHARDS_SHOWN = 20  # a dataset may have tens of thousands
NOT_SAMPLES = {"hidden", "not_read", "no_file"}  # uses of entries and members that a user may take for samples


def add_dataset_panels(ctx: Context, dataset: ImageDataset, bad: Sequence[BadRow] = ()) -> None:
    """Write the panels of a new dataset."""
    source = open_dataset(dataset)
    shards = source.index.shards
    note = f"{len(shards)} shards, {len(source)} samples"
    if len(shards) > SHARDS_SHOWN:
        note += f"; the first {SHARDS_SHOWN} shards:"
    ctx.panel(
        TablePanel(
            title="Shards",
            note=note,
            order=20,
            columns=["file", "format", "samples", "bytes"],
            rows=[[shard.path, shard.format, shard.num_samples, shard.size] for shard in shards[:SHARDS_SHOWN]],
        )
    )
    if bad:
        ctx.panel(_bad_panel(bad, len(source) + len(bad)))
    images = _first_images(ctx, source)
    if images:
        ctx.panel(ImagesPanel(title="First samples", order=30, pictures=images))


def add_ledger_panel(ctx: Context, totals: Mapping[str, Counter[str]]) -> None:
    """Write the totals of a ledger, if it has any, and log parts of the data that are not samples."""
    rows: list[list[str | float | int | None]] = []
    for unit, uses in sorted(totals.items()):
        described = []
        for use, count in uses.most_common():
            rows.append([unit, use, count])
            described.append(f"{count:,} {use}")
        if not uses.keys().isdisjoint(NOT_SAMPLES):
            ctx.log(f"{unit}: {', '.join(described)}")
    if rows:
        ctx.panel(
            TablePanel(
                title="Where the data went",
                note=f"All parts of the files, those in no sample with the reason. {LEDGER_FILE} has the ranges.",
                order=26,
                columns=["unit", "use", "number"],
                rows=rows,
            )
        )


def _bad_panel(bad: Sequence[BadRow], total: int) -> TablePanel:
    counts = Counter[str]()
    first: dict[str, str] = {}
    for row in bad:
        counts[row.reason] += 1
        first.setdefault(row.reason, row.where)
    return TablePanel(
        title="Bad samples",
        note=f"{len(bad)} of {total} samples were left out.",
        order=25,
        columns=["reason", "samples", "first"],
        rows=[[reason, count, first[reason]] for reason, count in counts.most_common()],
    )


def _first_images(ctx: Context, source: Source) -> list[PanelImage]:
    """Save small copies of the first images in the artifact's folder, each with its first caption or its class."""
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[PanelImage] = []
    for index in range(min(len(source), 2 * NUM_IMAGES)):
        try:
            sample = source[index]
            image = decode_image(sample.image, source.where(index))
        except BadSample:  # possible in shards that were counted but not read; training reports it
            continue
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        file = f"panels/sample-{len(saved):02d}.jpg"
        image.save(ctx.directory / file, quality=90)
        saved.append(PanelImage(file=file, caption=_caption(sample, source)))
        if len(saved) == NUM_IMAGES:
            break
    return saved


def _caption(sample: Sample, source: Source) -> str:
    if sample.label is not None and source.class_names:
        return source.class_names[sample.label]
    for texts in sample.texts.values():
        return texts[0]
    return ""
