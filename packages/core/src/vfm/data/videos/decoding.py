"""Decode clips with PyAV. Only the needed frames are converted, each once for each size of its views."""

# T frames of a clip, H and W height and width of a view

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.media import Media, RemoteVideo, VideoFacts, read_frame, reason_of
from vfm.data.videos.views import ClipView
from vfm.storage.remote_spans import RemoteError

# Playlists and scripts can make FFmpeg read other files and addresses, so only these formats are opened.
FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg"
Pixels = NDArray[np.uint8]


class Frame(Protocol):
    """A decoded frame."""

    def resized(self, width: int, height: int) -> Pixels:
        """Convert the frame to RGB, rotate it upright, and resize it, (height, width, 3)."""
        ...


def read_clips(media: Media, facts: VideoFacts, views: Sequence[ClipView]) -> list[Pixels]:
    """Read clips of a video in one pass.

    Args:
        media: The video.
        facts: Facts from indexing.
        views: The frames of each clip, and how they are resized and cropped.

    Returns:
        A clip for each view, (T, H, W, 3).

    Raises:
        BadSample: If the video cannot be decoded (`unreadable_video`), lacks a frame (`truncated_video`), or a server
            does not give it (`unreachable`).
    """
    clips = [np.empty((len(view.frames), *view.shape, 3), dtype=np.uint8) for view in views]
    uses: dict[int, list[tuple[int, int]]] = {}  # frame -> (clip, index in the clip)
    for number, view in enumerate(views):
        for index, wanted in enumerate(view.frames):
            uses.setdefault(wanted, []).append((number, index))
    for number, frame in read_frames(media, facts, sorted(uses)):
        resized: dict[tuple[int, int], Pixels] = {}
        for clip, index in uses[number]:
            view = views[clip]
            if view.size not in resized:
                resized[view.size] = frame.resized(*view.size)
            clips[clip][index] = view.cropped(resized[view.size])
    return clips


def read_frames(media: Media, facts: VideoFacts, numbers: Sequence[int]) -> Iterator[tuple[int, Frame]]:
    """Yield frames of a video by their numbers.

    Args:
        media: The video.
        facts: Facts about it from indexing.
        numbers: Ascending numbers of frames.

    Raises:
        BadSample: See `read_clips`.
    """
    if media.is_folder:
        paths = media.frame_paths()
        if numbers and numbers[-1] >= len(paths):
            raise BadSample("truncated_video", media.path)
        for number in numbers:
            yield number, _ImageFrame(paths[number])
        return
    with opened(media) as container:
        yield from _decoded(container, facts, numbers, media.path)


@contextmanager
def opened(media: Media) -> Iterator[Any]:
    """Open a file in a supported format.

    Raises:
        BadSample: If it cannot be opened, or decoded in the `with` block (`unreadable_video`), or a server does not
            give its bytes (`unreachable`).
    """
    stream: IO[bytes] | None = None
    failure: Exception | None = None
    try:
        with media.open() as stream, av.open(stream, container_options={"format_whitelist": FORMATS}) as container:
            yield container
    except (BadSample, FFmpegError, OSError, ValueError) as error:
        failure = error
    lost = stream.failure if isinstance(stream, RemoteVideo) else None
    lost = lost or failure  # bytes that did not come may also look like the end of the video
    if isinstance(lost, RemoteError):
        raise BadSample(reason_of(lost, "unreadable_video"), media.path) from lost
    if isinstance(failure, BadSample):
        raise failure
    if failure:
        raise BadSample("unreadable_video", media.path) from None


def video_stream(container: Any, where: str) -> Any:
    """Find the first stream that is a video, and not cover art, and set it to decode in one thread.

    Raises:
        BadSample: If there is no such stream, or its codec is unknown.
    """
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition).lower():
            if not stream.codec_context:  # FFmpeg has no decoder of this codec
                raise BadSample("unreadable_video", where)
            stream.thread_type = "NONE"  # each process decodes a video, so threads would compete
            stream.codec_context.thread_count = 1
            return stream
    raise BadSample("no_video_stream", where)


def _decoded(container: Any, facts: VideoFacts, numbers: Sequence[int], where: str) -> Iterator[tuple[int, Frame]]:
    """Yield the wanted frames, by their times if these are known, otherwise by counting."""
    stream = video_stream(container, where)
    reformatter = VideoReformatter()
    select = _by_time if facts.step else _by_count
    for number, frame in select(container, stream, facts, numbers, where):
        yield number, _DecodedFrame(frame, facts.rotation, reformatter)


def _by_time(
    container: Any, stream: Any, facts: VideoFacts, numbers: Sequence[int], where: str
) -> Iterator[tuple[int, Any]]:
    """Yield frames, decoding from the key frame before each. Skip frames that no other frame depends on.

    In x264 these are about half of the frames: 8 of 300 frames of 340 x 256 pixels took 28 ms instead of 52.
    """
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(max(0, bisect_right(facts.key_frames, number) - 1), []).append(number)
    for group, (key, wanted) in enumerate(groups.items()):
        if group or key:  # the first group may start at the beginning of the file, without a seek
            container.seek(facts.key_times[key], stream=stream, backward=True)
        times = dict(zip(map(facts.time_of, wanted), wanted, strict=True))
        last = wanted[-1]
        left = len(wanted)
        for packet in container.demux(stream):
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in times or packet.pts is None else "NONREF"
            for frame in packet.decode():
                if frame.pts in times:
                    left -= 1
                    yield times[frame.pts], frame
            if not left:
                break
        if left:
            raise BadSample("truncated_video", f"{where} (frame {last})")


def _by_count(
    container: Any, stream: Any, facts: VideoFacts, numbers: Sequence[int], where: str
) -> Iterator[tuple[int, Any]]:
    """Yield frames by counting from the beginning, or from a later key frame."""
    at = 0
    frames = iter(container.decode(stream))
    for wanted in numbers:
        key = bisect_right(facts.key_frames, wanted) - 1
        if key >= 0 and facts.key_frames[key] > at:
            at = facts.key_frames[key]
            time = facts.key_times[key]
            container.seek(time, stream=stream, backward=True)
            frames = _from_time(container.decode(stream), time)
        frame = None
        while at <= wanted:
            frame = next(frames, None)
            if frame is None:
                raise BadSample("truncated_video", where)
            at += 1
        assert frame is not None
        yield wanted, frame


def _from_time(frames: Iterator[Any], time: int) -> Iterator[Any]:
    """Yield frames from a time on. After a seek, frames before the key frame may come first, and may be damaged."""
    for frame in frames:
        if frame.pts is None or frame.pts >= time:
            yield frame


class _DecodedFrame:
    """A frame from PyAV."""

    def __init__(self, frame: Any, rotation: int, reformatter: VideoReformatter) -> None:
        self.frame = frame
        self.turns = rotation // 90
        self.reformatter = reformatter

    def resized(self, width: int, height: int) -> Pixels:
        if self.turns % 2:
            width, height = height, width
        converted = self.reformatter.reformat(self.frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        pixels = cast("Pixels", converted.to_ndarray())
        return np.rot90(pixels, self.turns) if self.turns else pixels


class _ImageFrame:
    """A frame in an image file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def resized(self, width: int, height: int) -> Pixels:
        image = decode_image(read_frame(self.path), self.path)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
