"""Open every video of `data.videos` once, and count unusable ones by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from vfm.base import UserError
from vfm.data.indexing.indexing import check_bad, warn_of_unreachable
from vfm.data.ledger.ledger import LEDGER_FILE, LedgerWriter
from vfm.data.samples.sample import UNREACHABLE, BadSample
from vfm.data.videos.formats import list_videos
from vfm.data.videos.listing import ListedVideo, Listing
from vfm.data.videos.media import VideoFacts
from vfm.data.videos.panels import add_video_panels
from vfm.data.videos.probing import probe
from vfm.data.videos.source import video_row, write_videos
from vfm.data.videos.stages import Videos
from vfm.interfaces import Context, Preflight, VideoDataset

CHUNK = 16  # videos that a process takes at a time
PEEK = 20  # videos that a check tries before anything runs


def index_videos(config: Videos, ctx: Context) -> VideoDataset:
    """List the videos, open each video, and write the index."""
    listing = list_videos(config)
    names, labels = listing.labelled(config.class_names)
    ctx.log(f"{config.path}: {listing.format}, {len(listing.videos)} videos, {len(names)} classes")
    return write_dataset(ctx, listing, names, labels, config.max_bad_fraction, config.runtime.num_workers)


def check_videos(config: Videos, ctx: Preflight) -> None:
    """Recognise the layout, check the labels, and decode a frame of the first usable video."""
    listing = list_videos(config)
    listing.labelled(config.class_names)
    problem: BadSample | None = None
    for video in listing.videos[:PEEK]:
        result = _probed(video)
        if isinstance(result, VideoFacts):
            return
        problem = problem or result
    message = f"none of the first videos can be used: {problem}" if problem else "no videos found"
    raise UserError(f"{config.path}: {message}")


def write_dataset(
    ctx: Context,
    listing: Listing,
    class_names: Sequence[str],
    labels: Sequence[int],
    max_bad_fraction: float,
    workers: int = 0,
    **facts: Any,
) -> VideoDataset:
    """Open the listed videos, and write their index and panels to `ctx.directory`.

    Args:
        ctx: Context of the stage.
        listing: The videos.
        class_names: Names of the classes.
        labels: Class of each video.
        max_bad_fraction: Tolerated fraction of unusable videos.
        workers: Processes that open videos.
        **facts: Further facts of the artifact.

    Raises:
        UserError: If too many videos are unusable, no video is usable, or two videos have the same key.
    """
    videos = _with_own_keys(listing.videos, ctx.stage)
    bad: Counter[str] = Counter()
    unusual: Counter[str] = Counter()
    problems: dict[int, str] = {}
    unreachable: list[BadSample] = []
    rows, first = [], ""
    with closing(_all_probed(videos, workers)) as results:
        for number, (video, label, result) in enumerate(zip(videos, labels, results, strict=True), 1):
            if isinstance(result, BadSample):
                bad[result.reason] += 1
                problems[number - 1] = result.reason
                first = first or f"; the first is {result.where} ({result.reason})"
                is_unreachable = result.reason == UNREACHABLE
                ctx.skip(result.reason, result.where, lacks_data=is_unreachable)
                if is_unreachable:
                    unreachable.append(result)
            else:
                unusual["variable_rate"] += result.variable_rate
                unusual["rotated"] += bool(result.rotation)
                rows.append(video_row(video.key, video.video_id, label, video.media, result))
            ctx.progress(number, len(videos), "videos")
            if unreachable:  # end early, since each further video of the server may take minutes
                check_bad(ctx.stage, bad, len(videos), max_bad_fraction, first)
    check_bad(ctx.stage, bad, len(videos), max_bad_fraction, first)
    if not rows:
        raise UserError(f"{ctx.stage}: no videos found{first}")
    warn_of_unreachable(ctx, unreachable, len(listing.videos))
    write_videos(ctx.directory, rows)
    with LedgerWriter(ctx.directory / LEDGER_FILE) as ledger:
        for account in listing.accounts:
            ledger.add(account, problems)
    dataset = VideoDataset.create(
        ctx.directory,
        num_samples=len(rows),
        bad_samples=dict(bad),
        unusual=dict(+unusual),  # kinds that occur
        format=listing.format,
        class_names=list(class_names),
        **facts,
    )
    add_video_panels(ctx, dataset)
    return dataset


def _probed(video: ListedVideo) -> VideoFacts | BadSample:
    if video.problem:
        return video.problem
    try:
        return probe(video.media)
    except BadSample as bad:
        return bad


def _with_own_keys(videos: Sequence[ListedVideo], stage: str) -> list[ListedVideo]:
    """Add the extension to the keys of files that differ in it only, such as `run/a.mp4` and `run/a.avi`.

    Raises:
        UserError: If two videos still have the same key.
    """

    def count(listed: Sequence[ListedVideo]) -> Counter[str]:
        return Counter(video.key for video in listed if not video.problem)

    keys = count(videos)
    distinct = []
    for video in videos:
        extension = video.media.path.rsplit(".", 1)[-1]
        distinct.append(replace(video, key=f"{video.key}.{extension}") if keys[video.key] > 1 else video)
    for key, number in count(distinct).most_common(1):
        if number > 1:
            raise UserError(f"{stage}: {number} videos have the key {key!r}; expected each key once")
    return distinct


def _all_probed(videos: Sequence[ListedVideo], workers: int) -> Generator[VideoFacts | BadSample, None, None]:
    if workers < 2:
        yield from map(_probed, videos)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_probed, videos, chunksize=CHUNK)
