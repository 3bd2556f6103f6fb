"""The interface of video classifiers that evaluations call.

`VideoClassifier.predictor` names a function `(checkpoint, device) -> VideoPredictor`. It must be declared by the stage
that makes the classifier (`Stage.predictor`), and no other function is called.
"""

# B clips, T frames, S side, C classes, D width

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class VideoPredictor(Protocol):
    """A loaded video classifier."""

    @property
    def class_names(self) -> list[str]:
        """Names of the outputs."""
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
        """Compute the score of each class for clips, (B, T, S, S, 3) to (B, C)."""
        ...

    def features(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode clips as unit vectors, (B, T, S, S, 3) to (B, D)."""
        ...
