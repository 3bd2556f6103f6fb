"""Index images without captions or labels (`data.images`)."""

from __future__ import annotations

from vfm.data.indexing.dataset_panels import add_dataset_panels
from vfm.data.indexing.indexing import Indexing, first_sample
from vfm.data.layouts.layout import find_layout
from vfm.data.ledger.account import Account
from vfm.data.pairs.stages import Images
from vfm.data.samples.spec import DatasetSpec
from vfm.interfaces import Context, ImageDataset, Preflight


def index_images(config: Images, ctx: Context) -> ImageDataset:
    """Index the images. Shards without a known count are read, and their bad images are left out."""
    layout = find_layout(config.path, config.format, config.image_root)
    spec = DatasetSpec(image_key=config.image_key, columns=config.columns)
    indexing = Indexing.of(config, ctx, spec, layout.paths)
    listed: list[Account] = []
    shards = layout.shards(ctx.directory, spec, listed)
    count = indexing.run(ctx.directory, shards, layout.num_shards, listed)
    dataset = ImageDataset.create(ctx.directory, num_samples=count, bad_samples=dict(indexing.counts))
    add_dataset_panels(ctx, dataset, indexing.bad)
    return dataset


def check_images(config: Images, ctx: Preflight) -> None:
    """Decode one image."""
    layout = find_layout(config.path, config.format, config.image_root)
    first_sample(layout, DatasetSpec(image_key=config.image_key, columns=config.columns))
