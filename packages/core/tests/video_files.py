"""Videos made at run time: the grey of a frame is its number, so that a decoded frame shows which one it is."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from numpy.typing import NDArray

STEP = 6  # grey levels between two frames
CODECS = {
    "h264": ("libx264", "mp4"),
    "vp9": ("libvpx-vp9", "webm"),
    "av1": ("libsvtav1", "mp4"),
    "hevc": ("libx265", "mp4"),
}
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "lp=1"}}


def grey_frames(count: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """(T, H, W, 3); the left quarter is bright, so that a mirrored or turned frame is seen."""
    frames = np.repeat((20 + STEP * np.arange(count, dtype=np.uint8))[:, None, None, None], 3, axis=3)
    frames = np.tile(frames, (1, size[1], size[0], 1))
    frames[:, :, : size[0] // 4] = 235
    return frames


def encode(
    frames: NDArray[np.uint8],
    codec: str = "h264",
    *,
    rate: int = 25,
    times: Sequence[int] | None = None,
    key_every: int = 250,
    options: dict[str, str] | None = None,
    sound: bool = False,
) -> bytes:
    name, form = CODECS[codec]
    with TemporaryDirectory() as folder:  # a file: `faststart` reads it once more
        path = Path(folder) / "video"
        _encode_to(path, frames, name, form, rate, times, key_every, options or {}, sound)
        return path.read_bytes()


def _encode_to(
    path: Path,
    frames: NDArray[np.uint8],
    name: str,
    form: str,
    rate: int,
    times: Sequence[int] | None,
    key_every: int,
    options: dict[str, str],
    sound: bool,
) -> None:
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(name, rate=rate, options=QUIET.get(name, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = key_every
        stream.codec_context.thread_count = 1
        heard = container.add_stream("aac", rate=16000) if sound else None
        if heard:
            mux_sound(container, heard)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def mux_sound(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        mux_sound(container, container.add_stream("aac", rate=16000))
    return buffer.getvalue()


def without_frames() -> bytes:
    """An avi with a stream of video in which there is no frame; other formats drop such a stream."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return buffer.getvalue()


def rotated(data: bytes, quarter_turns: int) -> bytes:
    """An mp4 whose track says that its frames are to be turned clockwise: the matrix of its `tkhd` box."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    place = data.index(b"tkhd") + 4 + 40
    return data[:place] + matrix + data[place + len(matrix) :]


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number of a decoded frame, from the grey of its centre."""
    height, width = pixels.shape[:2]
    centre = pixels[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2]
    return round((float(centre.mean()) - 20) / STEP)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
