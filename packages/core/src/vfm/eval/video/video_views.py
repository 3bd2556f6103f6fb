"""The test views of videos, and what a classifier says about them."""

# N videos, V views of each, T frames, S side, C classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vfm.data import BadSample
from vfm.data.videos import VideoSample, VideoSource, fixed_views, read_clips
from vfm.eval.video.predictor import VideoPredictor

Order = Literal["forward", "reversed", "shuffled"]


@dataclass(frozen=True)
class TestViews:
    """The clips and crops of a video that are averaged.

    num_clips: clips at fixed places.
    num_crops: crops of each.
    order: of the frames of a clip.
    seed: of shuffled frames.
    """

    __test__ = False  # no test of pytest's

    num_clips: int = 4
    num_crops: int = 3
    order: Order = "forward"
    seed: int = 0

    def read(self, sample: VideoSample, number: int, model: VideoPredictor) -> NDArray[np.uint8]:
        """Return the views of a video as a model takes them, (V, T, S, S, 3); raises BadSample.

        Args:
            sample: the video.
            number: of the video, for shuffled frames.
            model: its size and sampling are used.
        """
        facts = sample.facts
        views = [
            view
            for clip in range(self.num_clips)
            for view in fixed_views(
                model.sampling.fixed(facts.num_frames, clip, self.num_clips),
                (facts.width, facts.height),
                model.image_size,
                self.num_crops,
            )
        ]
        clips = np.stack(read_clips(sample.media, facts, views))
        if self.order == "reversed":
            return np.ascontiguousarray(clips[:, ::-1])
        if self.order == "shuffled":
            return clips[:, np.random.default_rng((self.seed, number)).permutation(clips.shape[1])]
        return clips


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities over the last axis."""
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
    """Yield lists of videos with their views for each model, or the reason why they have none.

    Args:
        source: the videos.
        numbers: of those that are read.
        models: M models.
        views: what is read.
        threads: that decode, since PyAV decodes without Python's lock.
        at_once: videos in a list.
    """

    def read(number: int) -> tuple[int, list[NDArray[np.uint8]] | BadSample]:
        sample = source[number]
        try:
            return number, [views.read(sample, number, model) for model in models]
        except BadSample as bad:
            return number, bad

    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(read, number) for number in numbers[:at_once]]
        for start in range(0, len(numbers), at_once):
            coming = [pool.submit(read, number) for number in numbers[start + at_once : start + 2 * at_once]]
            yield [one.result() for one in pending]
            pending = coming
