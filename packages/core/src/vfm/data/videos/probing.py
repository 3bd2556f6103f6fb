"""What a video file has: counted by its packets, without decoding more than one frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.decoding import open_container, video_stream
from vfm.data.videos.media import Media, VideoFacts, read_frame

LOST_SHARE = 0.1  # a file whose streams end so much before its declared end is truncated
RATE_TOLERANCE = 0.51  # times are rounded to the file's units, so steps may differ by one unit or half a frame
SIDEWAYS = 90


def probe(media: Media) -> VideoFacts:
    """Return the facts of a video.

    Raises:
        BadSample: it cannot be opened or decoded (`unreadable_video`), has no video (`no_video_stream`) or no frames
            (`no_frames`), or ends early (`truncated_video`).
    """
    if media.is_folder:
        return _probe_folder(media)
    try:
        with media.open() as stream, open_container(stream) as container:
            found = _read_packets(container, media.path)
        with media.open() as stream, open_container(stream) as container:
            frame = next(islice(container.decode(video_stream(container, media.path)), 1), None)
    except (FFmpegError, OSError, ValueError):
        raise BadSample("unreadable_video", media.path) from None
    if frame is None:
        raise BadSample("no_frames", media.path)
    rotation = round(frame.rotation / SIDEWAYS) * SIDEWAYS % 360
    width, height = frame.width, frame.height
    if rotation % 180:
        width, height = height, width
    numbers, times = found.key_frames()
    rate, varies = found.rate()
    return VideoFacts(
        len(found.times), rate, width, height, rotation, varies, numbers, times, found.step() if times else 0
    )


@dataclass
class _Packets:
    """The times of a video's packets; None where the format has none."""

    unit: float  # seconds
    declared_rate: float
    times: list[int | None] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)

    def key_frames(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the numbers of the frames at which decoding can start, and their times."""
        if not self.times or None in self.times or len(set(self.times)) < len(self.times):
            return (), ()
        order = {time: number for number, time in enumerate(sorted(self.times))}  # type: ignore[type-var]
        keys = sorted(time for time in self.keys if time is not None)
        return tuple(order[time] for time in keys), tuple(keys)

    def step(self) -> int:
        """Return the time from each frame to the next if it is the same everywhere, else 0."""
        steps = np.unique(np.diff(np.sort([time for time in self.times if time is not None])))
        return int(steps[0]) if len(steps) == 1 else 0

    def rate(self) -> tuple[float, bool]:
        """Return the frames in a second, and whether their distance varies."""
        times = np.array([time for time in self.times if time is not None], dtype=np.float64)
        if len(times) < 3 or len(times) < len(self.times):
            return self.declared_rate, False
        steps = np.diff(np.sort(times))
        mean = float(steps.mean())
        varies = bool((np.abs(steps - np.median(steps)) > max(1.01, RATE_TOLERANCE * np.median(steps))).any())
        return (1 / (mean * self.unit) if mean > 0 else self.declared_rate), varies


def _read_packets(container: Any, where: str) -> _Packets:
    stream = video_stream(container, where)
    declared = float(stream.average_rate or 0)
    found, end = _Packets(float(stream.time_base or 0), declared), 0.0
    for packet in container.demux():
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream or packet.stream.index == stream.index:
            found.times.append(packet.pts)
            if packet.is_keyframe:
                found.keys.append(packet.pts)
            if packet.is_corrupt:
                raise BadSample("truncated_video", where)
    if not found.times:
        raise BadSample("no_frames", where)
    duration = (container.duration or 0) / av.time_base
    if len(found.times) < stream.frames or end < (1 - LOST_SHARE) * duration - 1:
        raise BadSample("truncated_video", where)
    return found


def _probe_folder(media: Media) -> VideoFacts:
    pictures = media.pictures()
    if not pictures:
        raise BadSample("no_frames", media.path)
    image = open_image(read_frame(pictures[0]), pictures[0])
    return VideoFacts(len(pictures), 0.0, *image.size)
