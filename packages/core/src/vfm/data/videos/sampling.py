"""Which frames of a video make a clip: pure functions of its length and of given numbers.

Sources: Wang et al. 2016, Temporal segment networks (arXiv:1608.00859) for segments; Feichtenhofer et al. 2019,
SlowFast (arXiv:1812.03982) for dense clips.
"""

# T frames of a clip

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SamplingKind = Literal["segments", "dense"]


@dataclass(frozen=True)
class ClipSampling:
    """How a clip is taken from a video.

    Attributes:
        num_frames: frames of a clip, T.
        kind: segments: the whole video in T equal parts, one frame of each (EVA); dense: T frames, `stride` apart.
        stride: distance of the frames of a dense clip.
    """

    num_frames: int
    kind: SamplingKind = "segments"
    stride: int = 4

    def drawn(self, total: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the frames of a training clip of a video with `total` frames, (T,)."""
        if self.kind == "segments":
            return self._of_segments(total, rng.random(self.num_frames))
        return self._dense(total, float(rng.random()))

    def fixed(self, total: int, clip: int, num_clips: int) -> tuple[int, ...]:
        """Return the frames of test clip `clip` of `num_clips`, (T,): each takes another place of every segment.

        The released test of EVA draws its clips at random; these are the same in every run.
        """
        place = (clip + 0.5) / num_clips
        if self.kind == "segments":
            return self._of_segments(total, np.full(self.num_frames, place))
        return self._dense(total, place)

    def _of_segments(self, total: int, places: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, ...]:
        found = (np.arange(self.num_frames) + places) * total / self.num_frames
        return tuple(np.minimum(found.astype(np.int64), total - 1).tolist())

    def _dense(self, total: int, place: float) -> tuple[int, ...]:
        """Return frames at a fixed distance; in a video that is too short the last frame is repeated."""
        room = max(0, total - 1 - (self.num_frames - 1) * self.stride)
        start = min(int(place * (room + 1)), room)
        return tuple(min(start + number * self.stride, total - 1) for number in range(self.num_frames))
