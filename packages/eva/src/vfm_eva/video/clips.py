"""Augmented clips of videos with their labels, for training."""

# R repeats, T frames, S side

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from vfm.data import BadSample, Sample, SampleDraw
from vfm.data.videos import ClipSampling, VideoSample, drawn_view, read_clips
from vfm_eva.video.stages import ClipFrames, VideoAugmentation

JITTER_SHARE = 0.8  # share of the clips whose colours are changed


@dataclass(frozen=True)
class VideoClips:
    """Clips of a video with its label, or a batch."""

    clips: Tensor  # (B, R, T, 3, S, S) uint8
    labels: Tensor  # (B,)


@dataclass(frozen=True)
class MakeClips:
    """Creates the clips of a video, with frames, crop, flip and colours drawn from the draw's seed.

    Attributes:
        clip: Number and sampling of the frames.
        side: Side of a frame in pixels, S.
        augmentation: Settings of the augmentations.
    """

    clip: ClipFrames
    side: int
    augmentation: VideoAugmentation

    def __call__(self, sample: Sample, draw: SampleDraw) -> VideoClips:
        """Create the inputs of a video. Raises BadSample."""
        if not isinstance(sample, VideoSample) or sample.label is None:
            raise BadSample("missing_label", sample.key)
        augmentation = self.augmentation
        facts = sample.facts
        sampling = ClipSampling(self.clip.num_frames, self.clip.sampling, self.clip.stride)
        rng = np.random.default_rng(draw.seed)
        views = []
        # Several clips of a video in one sample, since decoding costs more than training on a clip (Hoffer et al.
        # 2020).
        for _ in range(augmentation.repeats):
            frames = sampling.drawn(facts.num_frames, rng)
            size = (facts.width, facts.height)
            view = drawn_view(frames, size, self.side, rng, scales=augmentation.scales, flip=augmentation.flip)
            views.append(view)
        clips = []
        for clip in read_clips(sample.media, facts, views):
            clips.append(recolored(to_frames(clip), augmentation, rng))
        return VideoClips(torch.stack(clips), torch.tensor(sample.label))


def to_frames(clip: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """Convert a clip (T, S, S, 3) to a tensor (T, 3, S, S)."""
    return torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)))


def recolored(clip: Tensor, augmentation: VideoAugmentation, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of a whole clip, and convert it to grey, each at random.

    Args:
        clip: Frames.
        augmentation: Ranges and probabilities of the changes.
        rng: Random generator of the draws.
    """
    jitter, grey, *strengths = rng.random(5)  # the number of draws does not depend on the settings
    if augmentation.color_jitter and jitter < JITTER_SHARE:
        changes = (pixels.adjust_brightness, pixels.adjust_contrast, pixels.adjust_saturation)
        for change, strength in zip(changes, strengths, strict=True):
            clip = change(clip, 1 + augmentation.color_jitter * (2 * strength - 1))
    return pixels.rgb_to_grayscale(clip, num_output_channels=3) if grey < augmentation.grey else clip
