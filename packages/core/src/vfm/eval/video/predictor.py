"""The interface of classifiers of videos: what an evaluation calls, whatever made the model.

`VideoClassifier.predictor` names a function `(checkpoint, device) -> VideoPredictor` that the stage which makes it
declares (`Stage.predictor`); no other is called.
"""

# B clips, T frames, S side, C classes, D width

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class VideoPredictor(Protocol):
    """A loaded classifier of videos."""

    @property
    def class_names(self) -> list[str]:
        """Names of its outputs."""
        ...

    @property
    def image_size(self) -> int:
        """Side of a frame, S."""
        ...

    @property
    def sampling(self) -> Any:
        """How clips are taken from a video (`vfm.data.videos.ClipSampling`)."""
        ...

    def logits(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the score of each class for clips, (B, T, S, S, 3) to (B, C)."""
        ...

    def features(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return unit vectors of clips, (B, T, S, S, 3) to (B, D)."""
        ...
