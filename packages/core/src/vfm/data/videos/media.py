"""Location of a video, and facts about it from indexing."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO

from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample, Sample
from vfm.storage import files


@dataclass(frozen=True)
class Media:
    """A video file, a part of a tar, or a folder of frames.

    Attributes:
        path: Path of the file, the tar or the folder.
        start: First byte in a tar, -1 for a whole file, -2 for a folder of frames.
        size: Number of bytes in a tar.
    """

    path: str
    start: int = -1
    size: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether the frames are images in a folder."""
        return self.start == -2

    def open(self) -> IO[bytes]:
        """Open the file, or read its part of a tar, with a single request for a remote tar."""
        if self.start >= 0:
            return io.BytesIO(files.read_bytes(self.path, self.start, self.start + self.size))
        return files.open_binary(self.path)

    def frame_paths(self) -> list[str]:
        """List the paths of the frames in a folder, in the order of the numbers in their names."""
        root = self.path.rstrip("/")
        names = [name for name in files.names_in(root) if name.lower().endswith(IMAGE_EXTENSIONS)]
        return [f"{root}/{name}" for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Build a key by which `frame2` comes before `frame10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_frame(path: str) -> bytes:
    """Read the bytes of an image in a folder of frames.

    Raises:
        BadSample: If the file is missing.
    """
    try:
        return files.read_bytes(path)
    except OSError:
        raise BadSample("missing_video", path) from None


def frame_folder(path: str) -> Media:
    """Create the media for a folder of frames."""
    return Media(path, -2)


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a video from indexing. With them, a clip is read in one pass.

    Attributes:
        num_frames: Number of frames.
        rate: Frames per second, 0 for a folder of frames.
        width: Width in pixels, after the rotation.
        height: Height in pixels, after the rotation.
        rotation: Degrees, a multiple of 90, by which stored frames are rotated anticlockwise.
        variable_rate: Whether the time between frames varies.
        key_frames: Numbers of the frames at which decoding can start, ascending, if they are known.
        key_times: Times of the key frames in the file's units.
        step: Time between consecutive frames in the same units, 0 if it varies.
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
        """Compute the time of a frame. Requires a known `step`."""
        return self.key_times[0] + (number - self.key_frames[0]) * self.step


@dataclass(frozen=True)
class VideoSample(Sample):
    """A sample whose frames are decoded when a clip is read; `image` is empty."""

    media: Media = Media("")
    facts: VideoFacts = VideoFacts(0, 0.0, 0, 0)
