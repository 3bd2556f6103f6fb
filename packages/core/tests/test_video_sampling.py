"""Test clips by the rules of VideoMAE and mmaction2, compared with plain twins of their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from vfm.base import UserError
from vfm.data.videos import ClipSampling
from vfm.eval.video.stages import VideoEvaluation
from vfm.eval.video.videos import check_clip_rule
from video_predictor import CLASSES, Greys

LENGTHS = [1, 2, 7, 28, 29, 30, 31, 32, 33, 61, 64, 65, 100, 300, 301]  # 8 frames, 4 apart, span 29


def videomae(total: int, length: int, stride: int, num_clips: int) -> list[list[int]]:
    """Choose windows of equal steps over every `stride`-th frame, the last repeated up to the length of a clip."""
    read = list(np.arange(0, total, stride))
    read += [read[-1]] * (length - len(read))
    step = max((len(read) - length) / (num_clips - 1), 0)
    return [read[int(clip * step) :][:length] for clip in range(num_clips)]


def mmaction(total: int, length: int, stride: int, num_clips: int) -> list[list[int]]:
    """Choose rounded equal offsets (the middle for one clip), and continue at the beginning behind the end."""
    last = max(total - ((length - 1) * stride + 1), 0)
    offsets = np.round(np.arange(num_clips) * (last / (num_clips - 1))) if num_clips > 1 else np.array([last // 2])
    frames = offsets.astype(int)[:, None] + np.arange(length) * stride
    return np.mod(frames, total).tolist()


def mmaction_dense(total: int, length: int, stride: int, num_clips: int) -> list[list[int]]:
    """Spread whole-numbered starts, and divide the range of frames by the length of a clip. Wrap around."""
    sample_range = length * stride
    starts = np.linspace(0, max(1, 1 + total - sample_range) - 1, num=num_clips, dtype=int)
    return [((np.arange(length) * (sample_range // length) + start) % total).tolist() for start in starts]


RULES = {"videomae": videomae, "mmaction": mmaction, "mmaction_dense": mmaction_dense}


@pytest.mark.parametrize("total", LENGTHS)
@pytest.mark.parametrize("num_clips", [2, 3, 5, 10])
def test_dense_test_clips_equal_videomaes_and_mmactions(total: int, num_clips: int) -> None:
    for length, stride in [(8, 4), (16, 2), (4, 1)]:
        dense = ClipSampling(length, "dense", stride)
        for rule, twin in RULES.items():
            clips = [list(dense.fixed(total, clip, num_clips, rule)) for clip in range(num_clips)]  # type: ignore[arg-type]
            assert clips == twin(total, length, stride, num_clips), rule


@pytest.mark.parametrize("total", LENGTHS)
def test_one_dense_clip_is_the_middle_one(total: int) -> None:
    dense = ClipSampling(8, "dense", 4)
    assert [list(dense.fixed(total, 0, 1, "mmaction"))] == mmaction(total, 8, 4, 1)
    assert [list(dense.fixed(total, 0, 1, "mmaction_dense"))] == mmaction_dense(total, 8, 4, 1)
    before = dense.fixed(total, 0, 1, "videomae")[0]
    after = total - 1 - dense.fixed(total, 0, 1, "videomae")[-1]
    assert abs(before - after) < 8  # at most a stride, and the frames behind the last stride


def test_rules_differ_where_a_video_is_longer_than_a_clip_and_leave_segments_alone() -> None:
    dense = ClipSampling(8, "dense", 4)
    first = {dense.fixed(300, 0, 3, rule)[0] for rule in ("parts", "videomae")}  # type: ignore[arg-type]
    assert first == {45, 0}
    assert ClipSampling(8).fixed(300, 0, 3, "mmaction") == ClipSampling(8).fixed(300, 0, 3)


def test_a_rule_without_effect_is_one_line() -> None:
    config = VideoEvaluation(kind="eval.video", name="ruler", data="videos", clip_rule="videomae")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="clip_rule: videomae is for models with dense clips, but m has sampling: seg"):
        check_clip_rule(config, {"m": Greys(CLASSES, ClipSampling(4))})
