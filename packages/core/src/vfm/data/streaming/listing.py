"""List tars with their sizes and versions for `data.stream`, without reading them."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.base import UserError
from vfm.data.index.index import write_index
from vfm.data.indexing.indexing import first_sample
from vfm.data.layouts.layout import Layout, find_layout
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.streaming.stages import Stream
from vfm.interfaces import Context, Preflight, TablePanel, TarList
from vfm.storage import files
from vfm.storage.remote import facts_of
from vfm.storage.remote_spans import RemoteError

SHOWN = 20


def list_tars(config: Stream, ctx: Context) -> TarList:
    """List the tars."""
    layout, spec = _layout(config)
    shards = shards_of(layout.paths)
    write_index(ctx.directory, shards, spec)
    size = sum(shard.size for shard in shards)
    note = f"{len(shards)} tars with {size:,} bytes, whose samples are not counted"
    if len(shards) > SHOWN:
        note += f"; the first {SHOWN}:"
    rows: list[list[str | float | int | None]] = [[shard.path, shard.size] for shard in shards[:SHOWN]]
    ctx.panel(TablePanel(title="Tars", note=note, order=20, columns=["file", "bytes"], rows=rows))
    return TarList.create(
        ctx.directory,
        num_samples=0,
        languages=list(spec.texts),
        lanes=config.lanes,
        lane_samples=config.lane_samples,
    )


def check_tars(config: Stream, ctx: Preflight) -> None:
    """Decode one sample."""
    first_sample(*_layout(config))


def shards_of(paths: Sequence[str]) -> list[Shard]:
    """Look up size and version of each tar, of many remote ones at a time.

    Raises:
        UserError: If a tar does not exist.
    """
    remote = list(filter(files.is_remote, paths))
    facts = dict(zip(remote, facts_of(remote), strict=True))
    shards = []
    for path in paths:
        known = facts.get(path)
        if isinstance(known, RemoteError):
            raise UserError(str(known))
        shards.append(Shard(path, "tar", known.size, known.version, 0) if known else Shard.of(path, 0))
    return shards


def _layout(config: Stream) -> tuple[Layout, DatasetSpec]:
    layout = find_layout(config.path, "webdataset", None)
    # The keys of all tars are not known, so each gets the name of its tar.
    spec = DatasetSpec(image_key=config.image_key, texts=config.texts, columns=config.columns, keys_repeat=True)
    return layout, layout.with_defaults(spec, labels=False)
