"""Index image-text pairs, or tables of captions without images (`data.pairs`)."""

from __future__ import annotations

from vfm.data.indexing.dataset_panels import add_dataset_panels
from vfm.data.indexing.indexing import Indexing, first_sample
from vfm.data.layouts.layout import Layout, find_layout
from vfm.data.ledger.account import Account
from vfm.data.pairs.stages import Pairs
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.caption_tables import caption_shards, caption_spec
from vfm.data.tables.table import CAPTION_COLUMNS, LIST_EXTENSION, table_kind
from vfm.interfaces import Context, Pool, Preflight
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths


def index_pairs(config: Pairs, ctx: Context) -> Pool:
    """Index the shards. Shards without a known count are read, and their bad samples are left out."""
    num_shards = None
    listed: list[Account] = []
    tables = _caption_tables(config)
    if tables is None:
        layout, spec = _layout(config)
        shards = layout.shards(ctx.directory, spec, listed)
        num_shards = layout.num_shards
        paths = layout.paths
    else:
        paths, spec, columns = tables
        if config.images == "auto":
            ctx.log(f"{paths[0]}: no column of images, so only its captions are read; no model can be trained on them")
        spec, shards = caption_shards(ctx.directory, paths, spec, columns, listed)
    indexing = Indexing.of(config, ctx, spec, paths)
    count = indexing.run(ctx.directory, shards, num_shards, listed)
    pool = Pool.create(ctx.directory, num_samples=count, bad_samples=dict(indexing.counts), languages=list(spec.texts))
    add_dataset_panels(ctx, pool, indexing.bad)
    return pool


def check_pairs(config: Pairs, ctx: Preflight) -> None:
    """Decode one sample, or find the columns of tables without images."""
    if _caption_tables(config) is None:
        first_sample(*_layout(config))


def _layout(config: Pairs) -> tuple[Layout, DatasetSpec]:
    layout = find_layout(config.path, config.format, config.image_root)
    spec = DatasetSpec(image_key=config.image_key, texts=config.texts, columns=config.columns)
    return layout, layout.with_defaults(spec, labels=False)


def _caption_tables(config: Pairs) -> tuple[list[str], DatasetSpec, list[str] | None] | None:
    """Find tables of captions without images.

    Returns:
        The tables, the spec of their texts, and the column names for tables without a header. A dataset with images
        gives None.
    """
    paths = expand_paths(config.path)
    if config.images == "auto" and not config.header:
        layout = find_layout(config.path, config.format, config.image_root)
        if not layout.only_captions(config.image_key, config.texts):
            return None
        paths = layout.paths
    elif config.images is True:
        return None
    for path in paths:
        files.size_and_time(path)  # raises if the file is missing
    header = config.header
    if not header and table_kind(paths[0]) == LIST_EXTENSION:
        header = [CAPTION_COLUMNS[0]]
    return paths, caption_spec(paths, config.texts, header, config.columns), header
