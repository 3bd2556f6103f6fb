"""Probe a video file by counting its packets, or its frames where packets have no reliable times.

In mp4 and matroska each packet has the time of its frame, so a frame is found by its time from the key frame before it.
In AVI packets are numbered in the order of decoding, which B-frames change, and transport streams, flv and asf do not
seek to the frame. Their frames are decoded once while indexing, and are always counted from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from vfm.base import positions
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.decoding import opened, video_stream
from vfm.data.videos.media import Media, VideoFacts, read_frame

LOST_SHARE = 0.1  # a file whose streams end earlier than its declared end by this share is truncated
RATE_TOLERANCE = 0.51  # times are rounded to the file's units, so steps may differ by one unit or half a frame
TIMED = {"mov", "matroska"}  # first names of the formats whose packets have the times of their frames
SIDEWAYS = 90  # degrees; cameras store turned videos as they are, with the angle


def probe(media: Media) -> VideoFacts:
    """Collect the facts about a video.

    Raises:
        BadSample: If the video cannot be opened or decoded (`unreadable_video`), has no video stream
            (`no_video_stream`) or no frames (`no_frames`), or ends early (`truncated_video`), or a server does not
            give it (`unreachable`).
    """
    if media.is_folder:
        return _probe_folder(media)
    with opened(media) as container:
        packets = _read_packets(container, media.path)
    # Opened again, because reading the packets has reached the end of the file.
    with opened(media) as container:
        timed = container.format.name.split(",")[0] in TIMED
        frames = container.decode(video_stream(container, media.path))
        frame = next(frames, None)
        num_frames = len(packets.times) if timed else 1 + sum(1 for _ in frames)
    if frame is None:
        raise BadSample("no_frames", media.path)
    rotation = round(frame.rotation / SIDEWAYS) * SIDEWAYS % 360
    width, height = frame.width, frame.height
    if rotation % 180:
        width, height = height, width
    rate, varies = packets.rate()
    if not timed:
        return VideoFacts(num_frames, rate, width, height, rotation, varies)
    numbers, times = packets.key_frames()
    step = packets.step() if times else 0
    return VideoFacts(num_frames, rate, width, height, rotation, varies, numbers, times, step)


def _known(times: Sequence[int | None]) -> list[int]:
    return [time for time in times if time is not None]


@dataclass
class _Packets:
    """The times of a video's packets. Some packets have no time."""

    unit: float  # seconds
    declared_rate: float
    times: list[int | None] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)

    def key_frames(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Find the numbers of the frames at which decoding can start, and their times."""
        if not self.times or None in self.times or len(set(self.times)) < len(self.times):
            return (), ()
        order = positions(sorted(_known(self.times)))
        keys = sorted(_known(self.keys))
        return tuple(order[time] for time in keys), tuple(keys)

    def step(self) -> int:
        """Compute the time between consecutive frames, 0 if it varies."""
        steps = np.unique(np.diff(np.sort(_known(self.times))))
        return int(steps[0]) if len(steps) == 1 else 0

    def rate(self) -> tuple[float, bool]:
        """Compute the frames per second, and whether the time between frames varies."""
        times = np.array(_known(self.times), dtype=np.float64)
        if len(times) < 3 or len(times) < len(self.times):
            return self.declared_rate, False
        steps = np.diff(np.sort(times))
        mean = float(steps.mean())
        # One tick of the clock is rounding of the timestamps, not a varying rate.
        varies = bool((np.abs(steps - np.median(steps)) > max(1.01, RATE_TOLERANCE * np.median(steps))).any())
        return (1 / (mean * self.unit) if mean > 0 else self.declared_rate), varies


def _read_packets(container: Any, where: str) -> _Packets:
    stream = video_stream(container, where)
    declared = float(stream.average_rate or 0)
    packets = _Packets(float(stream.time_base or 0), declared)
    end = 0.0
    stream_end = 0  # in units of the stream
    for packet in container.demux():
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream or packet.stream.index == stream.index:
            packets.times.append(packet.pts)
            stream_end = max(stream_end, (packet.pts or 0) + 2 * (packet.duration or 0))
            if packet.is_keyframe:
                packets.keys.append(packet.pts)
            if packet.is_corrupt:
                raise BadSample("truncated_video", where)
    if not packets.times:
        raise BadSample("no_frames", where)
    duration = (container.duration or 0) / av.time_base
    # Fewer packets than declared are no loss if they reach the end: an edit list leaves out the first ones, and AVI
    # also counts the frames that it shows again.
    declared_end = (stream.start_time or 0) + (stream.duration or stream_end + 1)
    lost = len(packets.times) < stream.frames and stream_end < declared_end
    if lost or end < (1 - LOST_SHARE) * duration - 1:
        raise BadSample("truncated_video", where)
    return packets


def _probe_folder(media: Media) -> VideoFacts:
    paths = media.frame_paths()
    if not paths:
        raise BadSample("no_frames", media.path)
    image = open_image(read_frame(paths[0]), paths[0])
    return VideoFacts(len(paths), 0.0, *image.size)
