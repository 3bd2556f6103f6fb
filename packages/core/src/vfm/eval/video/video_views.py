"""The clips and crops of a test video that a classifier is averaged over."""

# N videos, V views of each, T frames, S side, C classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vfm.data import BadSample
from vfm.data.videos import VideoSample, VideoSource, fixed_views, read_clips
from vfm.data.videos.sampling import ClipRule
from vfm.eval.video.predictor import VideoPredictor

Order = Literal["forward", "reversed", "shuffled"]


@dataclass(frozen=True)
class TestViews:
    """The clips and crops of a video that scores are averaged over.

    Attributes:
        num_clips: Number of clips, at fixed positions.
        num_crops: Number of crops of each clip.
        order: Order of the frames in a clip.
        seed: Seed of the shuffled frames.
        clip_rule: Where dense clips start.
    """

    __test__ = False  # pytest would collect the class by its name

    num_clips: int = 4
    num_crops: int = 3
    order: Order = "forward"
    seed: int = 0
    clip_rule: ClipRule = "parts"

    def read(self, sample: VideoSample, number: int, model: VideoPredictor) -> NDArray[np.uint8]:
        """Read the views of a video in the size that a model takes.

        Args:
            sample: The video.
            number: Index of the video. It seeds shuffled frames.
            model: Provides the image size and the sampling.

        Returns:
            (V, T, S, S, 3).

        Raises:
            BadSample: If the video cannot be read.
        """
        facts = sample.facts
        views = []
        for clip in range(self.num_clips):
            frames = model.sampling.fixed(facts.num_frames, clip, self.num_clips, self.clip_rule)
            views += fixed_views(frames, (facts.width, facts.height), model.image_size, self.num_crops)
        clips = np.stack(read_clips(sample.media, facts, views))
        if self.order == "reversed":
            return np.ascontiguousarray(clips[:, ::-1])
        if self.order == "shuffled":
            return clips[:, np.random.default_rng((self.seed, number)).permutation(clips.shape[1])]
        return clips


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute probabilities over the last axis."""
    # Without the maximum, `exp` could overflow.
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def read_ahead(
    source: VideoSource,
    numbers: Sequence[int],
    models: Sequence[VideoPredictor],
    views: TestViews,
    threads: int,
    at_once: int,
) -> Iterator[list[tuple[int, list[NDArray[np.uint8]] | BadSample]]]:
    """Yield lists of videos with their views for each model, or with the reason why they cannot be read.

    Args:
        source: The videos.
        numbers: Indices of the videos to read.
        models: M models.
        views: The clips and crops to read.
        threads: Number of decoding threads. They run in parallel, since PyAV decodes without Python's lock.
        at_once: Number of videos in a list.
    """

    def read(number: int) -> tuple[int, list[NDArray[np.uint8]] | BadSample]:
        sample = source[number]
        try:
            return number, [views.read(sample, number, model) for model in models]
        except BadSample as bad:
            return number, bad

    def submit(start: int) -> list[Future[tuple[int, list[NDArray[np.uint8]] | BadSample]]]:
        return [pool.submit(read, number) for number in numbers[start : start + at_once]]

    with ThreadPoolExecutor(threads) as pool:
        pending = submit(0)
        for start in range(0, len(numbers), at_once):
            # Decode the next list while the caller works on this one.
            coming = submit(start + at_once)
            yield [future.result() for future in pending]
            pending = coming
