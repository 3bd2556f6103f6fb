"""From a pair to what a contrastive step takes: the picture at the model's size, and one of its captions as tokens."""

# S side of the image, L context length

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vfm.data.sample import BadSample, Sample
from vfm.data.transforms import ImageTransform


@dataclass(frozen=True)
class MakePair:
    """Makes `images` (3, S, S) uint8 and `tokens` (L,) of a sample.

    Several captions: one is drawn from the sample's own seed, so every epoch sees another one.
    """

    transform: ImageTransform
    tokenize: Callable[[list[str]], Tensor]
    language: str

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: it has no caption in the language, or its picture cannot be read.
        """
        captions = sample.texts.get(self.language)
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({self.language})")
        caption = captions[np.random.default_rng([seed, 1]).integers(len(captions))]
        return {"images": self.transform(sample.image, seed, sample.key), "tokens": self.tokenize([caption])[0]}
