"""From a pair to what a contrastive step takes: the picture at the model's size, and one of its captions as tokens."""

# S side of the image, L context length

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
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
    chances: the languages that captions are drawn from, each with its weight; a sample without any in one has its
        caption from the others.
    """

    transform: Callable[[bytes, int, str], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    chances: Mapping[str, float]

    def __call__(self, sample: Sample, seed: int) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: it has no caption in these languages, or its picture cannot be read.
        """
        tokens = self.tokenize([self.caption(sample, seed)])[0]
        image = self.transform(sample.image, seed, sample.key)
        return {"images": image, "tokens": tokens, "uid": torch.full((), _number(sample.uid))}

    def caption(self, sample: Sample, seed: int) -> str:
        """One of the sample's captions: of a drawn language, where all are equally likely each time.

        Raises:
            BadSample: it has none in these languages.
        """
        there = [language for language in self.chances if sample.texts.get(language)]
        if not there:
            raise BadSample("missing_caption", f"{sample.key} ({', '.join(self.chances)})")
        captions = sample.texts[there[0]]
        if len(there) == len(captions) == 1:
            return captions[0]  # as most have one, and drawing takes time
        draw = np.random.default_rng([seed, _CAPTION_STREAM])
        if len(there) > 1:
            weights = np.array([self.chances[language] for language in there])
            captions = sample.texts[there[int(draw.choice(len(there), p=weights / weights.sum()))]]
        return captions[draw.integers(len(captions))]


def _number(uid: str) -> int:
    """63 bits of a name, by which samples are told apart on any device."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest()) >> 1
