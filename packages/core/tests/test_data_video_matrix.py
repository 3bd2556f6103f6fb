"""Every frame by its number, in containers x codecs x B-frames x rates, beside decoding the whole file."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vfm.data.videos import ClipView, Media, read_clips
from vfm.data.videos.probing import probe
from video_files import grey_frames

NUM = 36
UNEVEN = np.cumsum([1, 1, 3, 1, 2, 1] * 6).tolist()
CODECS = {"h264": "libx264", "mpeg4": "mpeg4", "hevc": "libx265", "mpeg2": "mpeg2video", "vp8": "libvpx"}
QUIET = {"libx265": {"x265-params": "log-level=none"}}
FORMATS = {
    "mp4": ["h264", "mpeg4", "hevc"],
    "matroska": ["h264", "mpeg4", "hevc", "mpeg2", "vp8"],
    "avi": ["h264", "mpeg4", "mpeg2"],
    "mpegts": ["h264", "mpeg4", "hevc", "mpeg2"],
    "flv": ["h264"],
    "asf": ["h264", "mpeg4"],
}


def made(path: Path, form: str, codec: str, b_frames: int, times: list[int] | None = None) -> Path:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(CODECS[codec], rate=25, options=QUIET.get(CODECS[codec], {}))
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(grey_frames(NUM)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def whole(path: Path) -> list[NDArray[np.uint8]]:
    """Decode all frames in one pass, without a seek."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def wrong_frames(path: Path) -> int:
    """Count the frames that differ when each is read alone."""
    media = Media(str(path))
    facts = probe(media)
    frames = whole(path)
    assert facts.num_frames == len(frames)
    wrong = 0
    for number, expected in enumerate(frames):
        (clip,) = read_clips(media, facts, [ClipView((number,), (64, 48), (0, 0, 64, 48))])
        wrong += int(np.abs(clip[0].astype(int) - expected).max() > 2)
    return wrong


@pytest.mark.parametrize("times", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("form", "codec"), [(form, codec) for form, codecs in FORMATS.items() for codec in codecs])
def test_no_frame_is_wrong(tmp_path: Path, form: str, codec: str, b_frames: int, times: list[int] | None) -> None:
    assert wrong_frames(made(tmp_path / f"a.{form}", form, codec, b_frames, times)) == 0


@pytest.mark.parametrize("cut", [3, 12, 17])
def test_an_edit_list_cuts_frames_at_the_beginning(tmp_path: Path, cut: int) -> None:
    path = made(tmp_path / "a.mp4", "mp4", "h264", 2)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 8  # past version, flags and count
    duration, start = struct.unpack_from(">Ii", data, at)
    struct.pack_into(">Ii", data, at, duration * (NUM - cut) // NUM, start + 512 * cut)  # 512 units are a frame
    path.write_bytes(data)
    assert len(whole(path)) == NUM - cut
    assert wrong_frames(path) == 0
