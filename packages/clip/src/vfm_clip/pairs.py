"""From a pair to what a contrastive step takes: the picture at the model's size, and one of its captions as tokens."""

# S side of the image, L context length

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vfm.data.images import decode_image
from vfm.data.sample import BadSample, Sample
from vfm.data.transforms import to_tensor
from vfm.models.preprocess import Preprocess

_CAPTION_STREAM = 1  # sets the draw of a sample's caption apart from that of its crop


@dataclass(frozen=True)
class EvalTransform:
    """The picture as an evaluation sees it: by the model's own rule, nothing drawn."""

    preprocess: Preprocess

    def __call__(self, data: bytes, seed: int, where: str = "") -> Tensor:
        """The image as uint8 (3, S, S); raises BadSample."""
        return to_tensor(self.preprocess.fit(decode_image(data, where)))


@dataclass(frozen=True)
class MakePair:
    """Makes `images` (3, S, S) uint8, `tokens` (L,) and `uid` () of a sample; crop and caption from its own seed.

    transform: an `ImageTransform`, or an `EvalTransform`.
    tokenize: the model's tokenizer.
    language: which of the captions.
    """

    transform: Callable[[bytes, int, str], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    language: str

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: it has no caption in the language, or its picture cannot be read.
        """
        tokens = self.tokenize([self.caption(sample, seed)])[0]
        image = self.transform(sample.image, seed, sample.key)
        return {"images": image, "tokens": tokens, "uid": torch.tensor(_number(sample.uid))}

    def caption(self, sample: Sample, seed: int) -> str:
        """One of the sample's captions; all are equally likely each time.

        Raises:
            BadSample: it has none in the language.
        """
        captions = sample.texts.get(self.language)
        if not captions:
            raise BadSample("missing_caption", f"{sample.key} ({self.language})")
        if len(captions) == 1:
            return captions[0]  # as most have one, and drawing takes time
        return captions[np.random.default_rng([seed, _CAPTION_STREAM]).integers(len(captions))]


def _number(uid: str) -> int:
    """63 bits of a name, by which samples are told apart on any device."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest()) >> 1
