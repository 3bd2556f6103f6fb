"""Draw panels with counts by class, unusual videos, and film strips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.data.samples.sample import BadSample
from vfm.data.videos.decoding import read_clips
from vfm.data.videos.media import VideoSample
from vfm.data.videos.sampling import ClipSampling
from vfm.data.videos.source import VideoSource
from vfm.data.videos.views import fixed_views
from vfm.interfaces import Context, ImagesPanel, PanelImage, TablePanel, VideoDataset

NUM_STRIPS = 10  # videos of the panel
STRIP_FRAMES = 8  # of a video
STRIP_SIDE = 72  # pixels of a frame
STRIP_GAP = 3  # pixels
CLASSES_SHOWN = 30  # a longer table is not read


def film_strip(clip: NDArray[np.uint8]) -> Image.Image:
    """Draw the frames of a clip, (T, H, W, 3), side by side."""
    num, height, width, _ = clip.shape
    strip = np.full((height, num * (width + STRIP_GAP) - STRIP_GAP, 3), 255, dtype=np.uint8)
    for number, frame in enumerate(clip):
        left = number * (width + STRIP_GAP)
        strip[:, left : left + width] = frame
    return Image.fromarray(strip)


def strip_of(sample: VideoSample) -> Image.Image:
    """Draw equidistant frames of a whole video side by side.

    Raises:
        BadSample: If the video cannot be decoded.
    """
    facts = sample.facts
    frames = ClipSampling(STRIP_FRAMES).fixed(facts.num_frames, 0, 1)
    (view,) = fixed_views(frames, (facts.width, facts.height), STRIP_SIDE, 1)
    return film_strip(read_clips(sample.media, facts, [view])[0])


def strips_panel(
    ctx: Context, slug: str, title: str, strips: Sequence[tuple[Image.Image, str]], *, order: int, note: str = ""
) -> ImagesPanel:
    """Save film strips with their captions in `panels/`, and create their panel."""
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, (strip, caption) in enumerate(strips):
        file = f"panels/{slug}-{number:02d}.jpg"
        strip.save(ctx.directory / file, quality=90)
        images.append(PanelImage(file=file, caption=caption))
    width = strips[0][0].width if strips else 0
    return ImagesPanel(title=title, note=note, order=order, pictures=images, width=min(600, width))


def add_video_panels(ctx: Context, dataset: VideoDataset) -> None:
    """Write the panels of a new dataset."""
    source = VideoSource.of(dataset)
    counts = Counter(source.labels)
    named = [[dataset.class_names[label], count] for label, count in counts.most_common(CLASSES_SHOWN)]
    lengths = np.array(source.table["num_frames"].to_pylist())
    unusual = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in dataset.unusual.items())
    note = (
        f"{len(source)} videos of {len(dataset.class_names)} classes, {int(np.median(lengths))} frames in the median"
        f" ({lengths.min()} to {lengths.max()})"
    )
    note += f"; {unusual}." if unusual else "."
    ctx.panel(TablePanel(title="Videos", note=note, order=20, columns=["class", "videos"], rows=named))
    if dataset.bad_samples:
        ctx.panel(
            TablePanel(
                title="Bad videos",
                note="Left out, by reason.",
                order=25,
                columns=["reason", "videos"],
                rows=list(map(list, dataset.bad_samples.items())),
            )
        )
    strips: list[tuple[Image.Image, str]] = []
    shown: set[int] = set()
    for index in range(len(source)):
        label = source.labels[index] if index < 500 else -1
        if len(strips) == NUM_STRIPS or label < 0:
            break
        if label in shown:
            continue
        try:
            strips.append((strip_of(source[index]), dataset.class_names[label]))
            shown.add(label)
        except BadSample:  # training reports it
            continue
    if strips:
        ctx.panel(strips_panel(ctx, "strip", "First videos", strips, order=30))
