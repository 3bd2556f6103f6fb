"""Decode clips with PyAV: only the wanted frames are converted, each once, at the size that its view needs."""

# T frames of a clip, H and W height and width of a view

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.media import Media, VideoFacts, read_frame
from vfm.data.videos.views import ClipView

# Playlists and scripts can make FFmpeg read other files and addresses, so only these formats are opened.
FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg"
Pixels = NDArray[np.uint8]


class Frame(Protocol):
    """A decoded frame."""

    def resized(self, width: int, height: int) -> Pixels:
        """Return it as RGB, turned upright, at a size, (height, width, 3)."""
        ...


def read_clips(media: Media, facts: VideoFacts, views: Sequence[ClipView]) -> list[Pixels]:
    """Read clips of one video in one pass.

    Args:
        media: the video.
        facts: as indexing found them.
        views: the frames of each clip, and how they are resized and cropped.

    Returns:
        A clip for each view, (T, H, W, 3).

    Raises:
        BadSample: the video cannot be decoded (`unreadable_video`), or lacks a frame (`truncated_video`).
    """
    clips = [np.empty((len(view.frames), *view.shape, 3), dtype=np.uint8) for view in views]
    places: dict[int, list[tuple[int, int]]] = {}
    for number, view in enumerate(views):
        for place, wanted in enumerate(view.frames):
            places.setdefault(wanted, []).append((number, place))
    for number, frame in read_frames(media, facts, sorted(places)):
        resized: dict[tuple[int, int], Pixels] = {}
        for clip, place in places[number]:
            view = views[clip]
            if view.size not in resized:
                resized[view.size] = frame.resized(*view.size)
            clips[clip][place] = view.cropped(resized[view.size])
    return clips


def read_frames(media: Media, facts: VideoFacts, numbers: Sequence[int]) -> Iterator[tuple[int, Frame]]:
    """Yield frames by their ascending numbers.

    Raises:
        BadSample: as `read_clips`.
    """
    if media.is_folder:
        pictures = media.pictures()
        if numbers and numbers[-1] >= len(pictures):
            raise BadSample("truncated_video", media.path)
        yield from ((number, _Picture(pictures[number])) for number in numbers)
        return
    try:
        with media.open() as stream, open_container(stream) as container:
            yield from _decoded(container, facts, numbers, media.path)
    except (FFmpegError, OSError, ValueError):
        raise BadSample("unreadable_video", media.path) from None


def open_container(stream: IO[bytes]) -> Any:
    """Open a file of one of the supported formats."""
    return av.open(stream, container_options={"format_whitelist": FORMATS})


def video_stream(container: Any, where: str) -> Any:
    """Return the first stream that is a video and not the picture of an album, set to decode in one thread.

    Raises:
        BadSample: there is none, or its codec is unknown.
    """
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition).lower():
            if not stream.codec_context:  # FFmpeg has no decoder of this codec
                raise BadSample("unreadable_video", where)
            stream.thread_type = "NONE"  # one process decodes one video: threads would compete
            stream.codec_context.thread_count = 1
            return stream
    raise BadSample("no_video_stream", where)


def _decoded(container: Any, facts: VideoFacts, numbers: Sequence[int], where: str) -> Iterator[tuple[int, Frame]]:
    """Yield the wanted frames, by their times where these are known, else by counting."""
    stream, reformatter = video_stream(container, where), VideoReformatter()
    found = _by_time if facts.step else _by_count
    for number, frame in found(container, stream, facts, numbers, where):
        yield number, _Decoded(frame, facts.rotation, reformatter)


def _by_time(
    container: Any, stream: Any, facts: VideoFacts, numbers: Sequence[int], where: str
) -> Iterator[tuple[int, Any]]:
    """Yield frames from the key frame before each; frames that no other one needs are not decoded on the way.

    About half of the frames of x264 are such: 8 of 300 frames of 340 x 256 pixels then took 28 ms in place of 52.
    """
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(max(0, bisect_right(facts.key_frames, number) - 1), []).append(number)
    for place, (key, wanted) in enumerate(groups.items()):
        if place or key:
            container.seek(facts.key_times[key], stream=stream, backward=True)
        times = {facts.time_of(number): number for number in wanted}
        last, left = wanted[-1], len(wanted)
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
    """Yield frames by counting from the beginning, or from a key frame that is further on."""
    at, frames = 0, iter(container.decode(stream))
    for wanted in numbers:
        key = bisect_right(facts.key_frames, wanted) - 1
        if key >= 0 and facts.key_frames[key] > at:
            at, time = facts.key_frames[key], facts.key_times[key]
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
    """Yield frames from a time on: after a seek, frames before the key frame may come first, and may be damaged."""
    for frame in frames:
        if frame.pts is None or frame.pts >= time:
            yield frame


class _Decoded:
    """A frame of PyAV."""

    def __init__(self, frame: Any, rotation: int, reformatter: VideoReformatter) -> None:
        self.frame, self.turns, self.reformatter = frame, rotation // 90, reformatter

    def resized(self, width: int, height: int) -> Pixels:
        if self.turns % 2:
            width, height = height, width
        found = self.reformatter.reformat(self.frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        pixels = cast("Pixels", found.to_ndarray())
        return np.rot90(pixels, self.turns) if self.turns else pixels


class _Picture:
    """A frame that is a picture in a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def resized(self, width: int, height: int) -> Pixels:
        image = decode_image(read_frame(self.path), self.path)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
