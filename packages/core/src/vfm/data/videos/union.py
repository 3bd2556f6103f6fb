"""Join video datasets and their classes, and leave out the videos of test datasets (`data.video_union`).

Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.2.2: Kinetics-722 is the union of three datasets.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from vfm.base import UserError
from vfm.data.videos.panels import add_video_panels
from vfm.data.videos.source import VideoSource, write_videos
from vfm.data.videos.stages import VideoUnion
from vfm.interfaces import Context, Preflight, VideoDataset


def join_videos(config: VideoUnion, ctx: Context) -> VideoDataset:
    """Write the index of all videos. The videos stay where they are.

    Raises:
        UserError: If no video is left.
    """
    parts = [ctx.load(ref) for ref in config.data]
    names = join_names([part.class_names for part in parts])
    held_out: set[str] = set()
    for ref in config.without:
        source = VideoSource.of(ctx.load(ref))
        held_out.update(_ids(source))
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    unusual: Counter[str] = Counter()
    for ref, part in zip(config.data, parts, strict=True):
        source = VideoSource.of(part)
        labels = list(map(names.index, part.class_names))
        _warn_of_repeated(ref, source, ctx)
        for row in source.table.to_pylist():
            # The same video may be in several datasets under different keys.
            identity = row["video_id"] or row["key"]
            if identity in held_out:
                dropped["held_out"] += 1
                continue
            if identity in seen:
                dropped["repeated"] += 1
                continue
            seen.add(identity)
            path = row["path"]
            # Paths in the index are relative to the folder of their dataset.
            if "://" not in path:
                path = str(source.directory / path)
            # Counted here, since `unusual` of the parts includes the videos that are left out.
            unusual["variable_rate"] += row["variable_rate"]
            unusual["rotated"] += bool(row["rotation"])
            rows.append({**row, "path": path, "label": labels[row["label"]], "key": f"{part.path.name}/{row['key']}"})
    if not rows:
        raise UserError(f"{ctx.stage}: no video is left: {dict(dropped)}")
    write_videos(ctx.directory, rows)
    ctx.log(f"{len(rows)} videos of {len(names)} classes; left out: {dict(dropped) or 'none'}")
    dataset = VideoDataset.create(
        ctx.directory,
        num_samples=len(rows),
        left_out=dict(dropped),
        unusual=dict(+unusual),  # kinds that occur
        format="union",
        class_names=names,
    )
    add_video_panels(ctx, dataset)
    return dataset


def check_union(config: VideoUnion, ctx: Preflight) -> None:
    """Check that no dataset is both joined and held out."""
    both = set(config.data) & set(config.without)
    if both:
        raise UserError(f"without: {min(both)} is in data too, so none of its videos would be left")


def join_names(lists: list[list[str]]) -> list[str]:
    """Collect all class names once, in the order of first appearance.

    (A, B) and (B, C) give A, B, C.
    """
    return list(dict.fromkeys(chain.from_iterable(lists)))


def _warn_of_repeated(ref: str, source: VideoSource, ctx: Context) -> None:
    """Warn of ids that several videos of a dataset have, such as equal file names in the folders of two classes."""
    identity, most = Counter(_ids(source)).most_common(1)[0]
    if most > 1:
        extra = len(source) - len(set(_ids(source)))
        ctx.warn(
            f"{ctx.stage}: {ref}: {extra} of its videos have the id of another video, such as {identity!r}, and are"
            " left out; give each file a unique name"
        )


def _ids(source: VideoSource) -> list[str]:
    return [row["video_id"] or row["key"] for row in source.table.select(["video_id", "key"]).to_pylist()]
