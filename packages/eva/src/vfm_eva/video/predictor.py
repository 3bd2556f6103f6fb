"""A video classifier for evaluations and `vfm predict`, with arrays as inputs and outputs."""

# B clips, T frames, S side, C classes, D width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.data.videos import ClipSampling
from vfm.models import Preprocess, vision_preprocess
from vfm.plugin import VideoClassifier
from vfm_eva.video.checkpoint import load_classifier
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import ClipFrames


@dataclass
class Predictor:
    """A video classifier that implements `vfm.plugin.VideoPredictor`."""

    module: VideoTransformer
    preprocess: Preprocess
    class_names: list[str]
    clip: ClipFrames

    @property
    def image_size(self) -> int:
        """Side of a frame, S."""
        return self.preprocess.image_size

    @property
    def sampling(self) -> ClipSampling:
        """How clips are taken from a video."""
        return ClipSampling(self.clip.num_frames, self.clip.sampling, self.clip.stride)

    def logits(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute class scores for clips, (B, T, S, S, 3) to (B, C)."""
        return self._computed(clips, self.module)

    def features(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute features of clips with unit length, (B, T, S, S, 3) to (B, D)."""
        return self._computed(clips, lambda pixels: F.normalize(self.module.features(pixels).float(), dim=-1))

    def _computed(self, clips: NDArray[np.uint8], forward: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            frames = torch.from_numpy(clips).flatten(0, 1).to(device)
            pixels = self.preprocess.pixels(frames)
            outputs = forward(pixels.unflatten(0, clips.shape[:2]))  # type: ignore[no-untyped-call]
            array: NDArray[np.float32] = outputs.float().cpu().numpy()
            return array


def load_predictor(checkpoint: VideoClassifier, device: torch.device) -> Predictor:
    """Load a video classifier for predictions."""
    model = load_classifier(checkpoint, device)
    clip = ClipFrames(num_frames=checkpoint.num_frames, sampling=checkpoint.sampling, stride=checkpoint.stride)
    return Predictor(model, vision_preprocess(model.visual), checkpoint.class_names, clip)
