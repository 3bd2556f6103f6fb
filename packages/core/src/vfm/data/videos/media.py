"""Where a video is, and what indexing found out about it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample, Sample
from vfm.storage import files


@dataclass(frozen=True)
class Media:
    """A video file, a part of a tar, or a folder of frames.

    Attributes:
        path: of the file, the tar or the folder.
        start: first byte in a tar; -1: the whole file, -2: a folder of pictures.
        size: bytes in a tar.
    """

    path: str
    start: int = -1
    size: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether the frames are pictures in a folder."""
        return self.start == -2

    def open(self) -> IO[bytes]:
        """Open the file, or read its part of a tar, which is one request of a remote store."""
        if self.start >= 0:
            return io.BytesIO(files.read_bytes(self.path, self.start, self.start + self.size))
        return files.open_binary(self.path)

    def pictures(self) -> list[str]:
        """Return the paths of the frames of a folder, sorted by name."""
        root = self.path.rstrip("/")
        return [f"{root}/{name}" for name in files.names_in(root) if name.lower().endswith(IMAGE_EXTENSIONS)]


def read_frame(path: str) -> bytes:
    """Return the bytes of a picture in a folder of frames; raises BadSample if it is missing."""
    try:
        return files.read_bytes(path)
    except OSError:
        raise BadSample("missing_video", path) from None


def frame_folder(path: str) -> Media:
    """Return a folder of frames."""
    return Media(path, -2)


@dataclass(frozen=True)
class VideoFacts:
    """What indexing found out about a video, so that reading a clip needs one pass.

    Attributes:
        num_frames: number of frames.
        rate: frames in a second; 0 for a folder of frames.
        width: in pixels, after the turn.
        height: in pixels, after the turn.
        rotation: degrees, a multiple of 90, by which stored frames are turned anticlockwise.
        variable_rate: whether the time between frames varies.
        key_frames: numbers of frames at which decoding can start, ascending; empty if unknown.
        key_times: their times in the file's units.
        step: time from each frame to the next, in the same units; 0: not the same everywhere.
    """

    num_frames: int
    rate: float
    width: int
    height: int
    rotation: int = 0
    variable_rate: bool = False
    key_frames: tuple[int, ...] = ()
    key_times: tuple[int, ...] = ()
    step: int = 0

    def time_of(self, number: int) -> int:
        """Return the time of a frame; only where `step` is known."""
        return self.key_times[0] + (number - self.key_frames[0]) * self.step


@dataclass(frozen=True)
class VideoSample(Sample):
    """A sample whose frames are decoded when a clip is read; `image` is empty."""

    media: Media = Media("")
    facts: VideoFacts = VideoFacts(0, 0.0, 0, 0)
