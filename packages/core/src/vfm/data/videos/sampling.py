"""Choose the frames of a clip, by pure functions of the video's length and given numbers.

Sources: Wang et al. 2016, Temporal segment networks (arXiv:1608.00859) for segments; Feichtenhofer et al. 2019,
SlowFast (arXiv:1812.03982) for dense clips; the public code of VideoMAE and mmaction2 for their test clips.
"""

# T frames of a clip

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SamplingKind = Literal["segments", "dense"]
ClipRule = Literal["parts", "videomae", "mmaction", "mmaction_dense"]


@dataclass(frozen=True)
class ClipSampling:
    """Settings for sampling clips from a video.

    Attributes:
        num_frames: Frames of a clip, T.
        kind: `segments` takes a frame from each of T equal parts of the video (EVA), `dense` takes T frames `stride`
            apart.
        stride: Distance between the frames of a dense clip.
    """

    num_frames: int
    kind: SamplingKind = "segments"
    stride: int = 4

    def drawn(self, total: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw the frames of a training clip from a video with `total` frames, (T,)."""
        if self.kind == "segments":
            return self._of_segments(total, rng.random(self.num_frames))
        return self._dense(total, float(rng.random()))

    def fixed(self, total: int, clip: int, num_clips: int, rule: ClipRule = "parts") -> tuple[int, ...]:
        """Choose the frames of test clip `clip` of `num_clips`, (T,).

        Each clip takes a different position in every segment. EVA's released test draws its clips at random, while
        these are the same in every run.

        Args:
            total: Frames of the video.
            clip: Index of the clip.
            num_clips: Number of clips.
            rule: Where dense clips start. `parts`: in the middle of equal parts of all starts. `videomae`: from the
                first to the last start in equal steps, counted in strides. `mmaction`: the same counted in frames, and
                short videos start again. One clip is the middle one. `mmaction_dense`: as `mmaction`, but a clip ends
                with the gap after its last frame, and one clip is the first one. Segments ignore it.
        """
        if self.kind == "dense" and rule == "videomae":
            return self._as_videomae(total, clip, num_clips)
        if self.kind == "dense" and rule == "mmaction":
            return self._as_mmaction(total, clip, num_clips)
        if self.kind == "dense" and rule == "mmaction_dense":
            return self._as_mmaction_dense(total, clip, num_clips)
        position = (clip + 0.5) / num_clips
        if self.kind == "segments":
            return self._of_segments(total, np.full(self.num_frames, position))
        return self._dense(total, position)

    def _of_segments(self, total: int, positions: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, ...]:
        frames = (np.arange(self.num_frames) + positions) * total / self.num_frames
        return tuple(np.minimum(frames.astype(np.int64), total - 1).tolist())

    def _dense(self, total: int, position: float) -> tuple[int, ...]:
        """Choose frames at a fixed distance. If the video is too short, the last frame is repeated."""
        room = max(0, total - 1 - (self.num_frames - 1) * self.stride)
        start = min(int(position * (room + 1)), room)
        return tuple(np.minimum(self._from(start), total - 1).tolist())

    def _as_videomae(self, total: int, clip: int, num_clips: int) -> tuple[int, ...]:
        """Choose frames among every `stride`-th of the video. If they are too few, the last one is repeated."""
        candidates = range(0, total, self.stride)
        room = max(0, len(candidates) - self.num_frames)
        start = int(clip * (room / (num_clips - 1))) if num_clips > 1 else room // 2
        return tuple(np.minimum(self._from(self.stride * start), candidates[-1]).tolist())

    def _as_mmaction(self, total: int, clip: int, num_clips: int) -> tuple[int, ...]:
        """Choose frames at a fixed distance. If the video is too short, it starts again."""
        room = max(0, total - 1 - (self.num_frames - 1) * self.stride)
        start = round(clip * (room / (num_clips - 1))) if num_clips > 1 else room // 2
        return tuple((self._from(start) % total).tolist())

    def _as_mmaction_dense(self, total: int, clip: int, num_clips: int) -> tuple[int, ...]:
        """Choose frames of equal parts of `num_frames * stride` frames. If the video is too short, it starts again."""
        room = max(0, total - self.num_frames * self.stride)
        start = int(np.linspace(0, room, num_clips)[clip])
        return tuple((self._from(start) % total).tolist())

    def _from(self, start: int) -> NDArray[np.int64]:
        """List frames at a fixed distance, as if the video had no end."""
        return start + self.stride * np.arange(self.num_frames)
