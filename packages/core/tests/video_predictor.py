"""A classifier of videos without weights, as an artifact names it: it computes whether the grey rises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vfm.data.videos import ClipSampling
from vfm.interfaces import Artifact, Stage, VideoClassifier

CLASSES = ["brighter", "darker", "still"]


@dataclass
class Greys:
    """Scores from the change of grey over a clip; the last class has a constant score."""

    class_names: list[str]
    sampling: ClipSampling
    image_size: int = 16
    nan: bool = False

    def logits(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        grey = clips[..., 8, 12, 0].astype(np.float32)  # (B, T): a pixel right of the bright quarter
        change = (grey[:, -1] - grey[:, 0]) / 20
        scores = np.stack([change, -change, np.full_like(change, 0.5)], axis=1)
        return np.full_like(scores, np.nan) if self.nan else scores

    def features(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = clips.reshape(len(clips), -1)[:, :8].astype(np.float32) + 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class Greyness(Stage):
    """Declares the predictor, as a plugin's stage does."""

    kind: Literal["toy.greyness"] = "toy.greyness"
    makes: ClassVar[type[Artifact]] = VideoClassifier
    work: ClassVar[str] = "video_predictor:load"
    predictor: ClassVar[str] = "video_predictor:load"


def load(checkpoint: VideoClassifier, device: Any) -> Greys:
    sampling = ClipSampling(checkpoint.num_frames, checkpoint.sampling, checkpoint.stride)
    return Greys(checkpoint.class_names, sampling, checkpoint.image_size, bool(checkpoint.model.get("nan")))


def make_classifier(folder: Path, names: list[str] = CLASSES, **model: Any) -> VideoClassifier:
    return VideoClassifier.create(
        folder, class_names=names, image_size=16, num_frames=4, sampling="segments", stride=1, model=model,
        predictor=Greyness.predictor,
    )  # fmt: skip
