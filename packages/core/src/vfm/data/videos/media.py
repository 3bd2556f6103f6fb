"""Location of a video, and facts about it from indexing."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import IO, cast

from vfm.base import UserError
from vfm.data.reading.byte_ranges import RangeStream
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import UNREACHABLE, BadSample, Reason, Sample
from vfm.storage import files, remote
from vfm.storage.remote_spans import RemoteError


class RemoteVideo(RangeStream):
    """Read a remote video file, and keep the error of a failed read, which FFmpeg may take for the end of the file."""

    failure: RemoteError | None = None

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes.

        Raises:
            RemoteError: If the bytes cannot be read.
        """
        try:
            return super().read(size)
        except RemoteError as error:
            self.failure = error
            raise


def reason_of(error: RemoteError, otherwise: Reason) -> Reason:
    """Choose the reason of a sample whose bytes did not come: `unreachable` if they may come another time."""
    return otherwise if error.final or error.reason == remote.NOT_FOUND else UNREACHABLE


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
        """Open the file, or read its part of a tar, with a single request for a remote tar.

        Raises:
            OSError: If it cannot be read.
        """
        if self.start >= 0:
            return io.BytesIO(files.read_bytes(self.path, self.start, self.start + self.size))
        if not files.is_remote(self.path):
            return files.open_binary(self.path)
        return cast("IO[bytes]", RemoteVideo(self.path, remote.facts(self.path).size))

    def frame_paths(self) -> list[str]:
        """List the paths of the frames in a folder, in the order of the numbers in their names.

        Raises:
            BadSample: If a server does not list the folder.
        """
        root = self.path.rstrip("/")
        try:
            names = [name for name in files.names_in(root) if name.lower().endswith(IMAGE_EXTENSIONS)]
        except UserError as error:
            if not isinstance(error.__cause__, RemoteError):
                raise
            raise BadSample(reason_of(error.__cause__, "missing_video"), root) from error.__cause__
        return [f"{root}/{name}" for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Build a key by which `frame2` comes before `frame10`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_frame(path: str) -> bytes:
    """Read the bytes of an image in a folder of frames.

    Raises:
        BadSample: If the file is missing (`missing_video`), or a server does not give it (`unreachable`).
    """
    try:
        return files.read_bytes(path)
    except RemoteError as error:
        raise BadSample(reason_of(error, "missing_video"), path) from error
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
