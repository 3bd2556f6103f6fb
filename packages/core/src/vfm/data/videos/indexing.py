"""Work of `data.videos`: every video is opened once, and what cannot be used is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from vfm.base import UserError
from vfm.data.indexing.indexing import check_bad
from vfm.data.samples.sample import BadSample
from vfm.data.videos.formats import list_videos
from vfm.data.videos.listing import Listed, Listing
from vfm.data.videos.media import VideoFacts
from vfm.data.videos.panels import add_video_panels
from vfm.data.videos.probing import probe
from vfm.data.videos.source import video_row, write_videos
from vfm.data.videos.stages import Videos
from vfm.interfaces import Context, Preflight, VideoDataset

CHUNK = 16  # videos that a process takes at a time
PEEK = 20  # videos that a check tries before anything runs


def index_videos(config: Videos, ctx: Context) -> VideoDataset:
    """List the videos, open each, and write the index."""
    listing = list_videos(config)
    names, labels = listing.labelled(config.class_names)
    ctx.log(f"{config.path}: {listing.format}, {len(listing.videos)} videos, {len(names)} classes")
    return write_dataset(ctx, listing, names, labels, config.max_bad_fraction, config.runtime.num_workers)


def check_videos(config: Videos, ctx: Preflight) -> None:
    """Recognise the layout, check the labels, and decode a frame of one video."""
    listing = list_videos(config)
    listing.labelled(config.class_names)
    problem: BadSample | None = None
    for one in listing.videos[:PEEK]:
        found = _probed(one)
        if isinstance(found, VideoFacts):
            return
        problem = problem or found
    what = f"none of the first videos can be used: {problem}" if problem else "no videos found"
    raise UserError(f"{config.path}: {what}")


def write_dataset(
    ctx: Context,
    listing: Listing,
    class_names: Sequence[str],
    labels: Sequence[int],
    max_bad_fraction: float,
    workers: int = 0,
    **facts: Any,
) -> VideoDataset:
    """Open the listed videos, and write their index and its panels into `ctx.directory`.

    Raises:
        UserError: too many cannot be used, none can, or two have one key.
    """
    keys = Counter(one.key for one in listing.videos if not one.problem)
    if keys and (most := keys.most_common(1)[0])[1] > 1:
        raise UserError(f"{ctx.stage}: {most[1]} videos have the key {most[0]!r}; expected each key once")
    bad: Counter[str] = Counter()
    unusual: Counter[str] = Counter()
    rows, first = [], ""
    found = zip(listing.videos, labels, _all_probed(listing.videos, workers), strict=True)
    for number, (one, label, result) in enumerate(found, 1):
        if isinstance(result, BadSample):
            bad[result.reason] += 1
            first = first or f"; the first is {result.where} ({result.reason})"
            ctx.skip(result.reason, result.where)
        else:
            unusual["variable_rate"] += result.variable_rate
            unusual["rotated"] += bool(result.rotation)
            rows.append(video_row(one.key, one.video_id, label, one.media, result))
        ctx.progress(number, len(listing.videos), "videos")
    check_bad(ctx.stage, bad, len(listing.videos), max_bad_fraction, first)
    if not rows:
        raise UserError(f"{ctx.stage}: no videos found{first}")
    write_videos(ctx.directory, rows)
    dataset = VideoDataset.create(
        ctx.directory,
        num_samples=len(rows),
        bad_samples=dict(bad),
        unusual={name: count for name, count in unusual.items() if count},
        format=listing.format,
        class_names=list(class_names),
        **facts,
    )
    add_video_panels(ctx, dataset)
    return dataset


def _probed(one: Listed) -> VideoFacts | BadSample:
    if one.problem:
        return one.problem
    try:
        return probe(one.media)
    except BadSample as bad:
        return bad


def _all_probed(videos: Sequence[Listed], workers: int) -> Iterator[VideoFacts | BadSample]:
    if workers < 2:
        yield from map(_probed, videos)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_probed, videos, chunksize=CHUNK)
