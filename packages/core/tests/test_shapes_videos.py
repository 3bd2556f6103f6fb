"""The moving world: every action is its partner played backwards, so only the order of frames tells them apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from vfm.data.synthetic.actions import ACTIONS, PAIRS, REVERSED, Action
from vfm.data.synthetic.sampling import Stream, generator
from vfm.data.synthetic.stages import ShapesVideos
from vfm.data.synthetic.videos import draw_moving, sample_moving
from vfm.data.synthetic.world import World
from vfm.data.videos import VideoSource, read_clips
from vfm.data.videos.views import ClipView
from vfm.interfaces import Context, VideoDataset

WORLD = World(image_size=32)


def frames_of(action: Action, number: int, count: int = 8) -> np.ndarray:
    return draw_moving(sample_moving(WORLD, generator(0, Stream.VIDEOS, number), action, 2, 0.75), 32, count)


@pytest.mark.parametrize("pair", PAIRS)
def test_an_action_is_its_partner_played_backwards(pair: tuple[Action, Action]) -> None:
    for number in range(3):
        one, other = (frames_of(action, number) for action in pair)
        assert np.array_equal(one, other[::-1])
        assert not np.array_equal(one, other)
        assert all((before != after).any() for before, after in itertools.pairwise(one))
    assert len(REVERSED) == len(ACTIONS) == 10


@pytest.mark.parametrize("pair", PAIRS)
def test_no_place_in_the_video_tells_the_actions_of_a_pair_apart(pair: tuple[Action, Action]) -> None:
    """At each time the state has one distribution in both: the mean pictures of many clips agree, first frames too."""
    means = [np.mean([frames_of(action, n, 4).astype(float) for n in range(250)], axis=0) for action in pair]
    spread = np.std([frames_of(pair[0], n, 4).astype(float) for n in range(100)], axis=0) / np.sqrt(250)
    gap = np.abs(means[0] - means[1]) / np.maximum(spread, 0.3)
    assert np.mean(gap) < 2  # in standard errors of a single mean; a step in place would give ten and more


def test_videos_are_drawn_alike_by_any_number_of_processes_and_read_back(tmp_path) -> None:
    made = {}
    for name, size in (("a", 20), ("b", 7)):
        folder = tmp_path / name
        (folder / "work").mkdir(parents=True)
        config = ShapesVideos(
            kind="shapes.videos", name=name, world=WORLD, num_samples=20, samples_per_shard=size, num_frames=8
        )
        made[name] = config.run(Context(name, folder, folder / "work", {}))
    one, two = (VideoSource.of(made[name]) for name in made)
    assert isinstance(made["a"], VideoDataset)
    assert made["a"].reversals == REVERSED
    assert one.labels == two.labels == [n % 10 for n in range(20)]
    for number in (0, 13):
        clips = []
        for source in (one, two):
            sample = source[number]
            view = ClipView(tuple(range(8)), (32, 32), (0, 0, 32, 32))
            clips.append(read_clips(sample.media, sample.facts, [view])[0])
        assert np.array_equal(*clips)
        drawn = frames_of(ACTIONS[number % 10], number)
        assert np.abs(clips[0].astype(int) - drawn).mean() < 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions": ["left", "left"]}, "must not repeat"),
        ({"world": {"image_size": 33}}, "must be even"),
        ({"world": {"shapes": ["circle"]}}, "no shape of this world shows a turn"),
    ],
)
def test_impossible_worlds_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShapesVideos(kind="shapes.videos", name="a", **fields)  # type: ignore[arg-type]
