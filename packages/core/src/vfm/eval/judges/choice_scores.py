"""Logits of all statements of an item for all its images, for each model."""

# P items, S statements, I images

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.artifacts import ChoiceDataset
from vfm.data import BadSample
from vfm.data.choices import Choice, load_choices
from vfm.data.images import decode_image
from vfm.eval.encode import Reading, TextImageEncoder, encode_texts, logit_scale
from vfm.eval.fingerprint import item_digest
from vfm.stage import Context

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """The usable items, and by model the logits of each item's statements for its images, (S, I) each.

    digests: of each item, images included (`fingerprint.item_digest`).
    """

    items: list[Choice]
    digests: list[bytes]
    logits: dict[str, list[Scores]]

    @property
    def keys(self) -> list[str]:
        """The items' names."""
        return [item.key for item in self.items]

    @property
    def patterns(self) -> NDArray[np.int64]:
        """The place of each item's pattern among `names`, (P,)."""
        return np.array([self.names.index(item.pattern) for item in self.items])

    @property
    def names(self) -> list[str]:
        """The patterns, in the order in which they occur."""
        return list(dict.fromkeys(item.pattern for item in self.items))


def score_choices(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    prompt: str,
    reading: Reading,
    check: Callable[[Choice], None] = lambda item: None,
) -> Scored:
    """Logits of all statements for all images of each item, with each model's own temperature.

    Items with a bad image are skipped, counted and told.

    Raises:
        UserError: too many bad items, or whatever `check` says of one.
    """
    items: list[Choice] = []
    digests: list[bytes] = []
    told: Counter[str] = Counter()
    logits: dict[str, list[Scores]] = {name: [] for name in models}
    chunk: list[tuple[Choice, list[Image.Image]]] = []
    for seen, item in enumerate(load_choices(data), start=1):
        check(item)
        try:
            chunk.append((item, [decode_image(image, item.key) for image in item.images]))
        except BadSample as bad:
            told[bad.reason] += 1
            ctx.skip(bad.reason, bad.where)
        if len(chunk) == reading.batch_size or seen == data.num_pairs:
            items += [item for item, _ in chunk]
            digests += [_digest(item) for item, _ in chunk]
            for name, model in models.items():
                logits[name] += _score_chunk(model, chunk, prompt, reading.batch_size)
            chunk = []
            ctx.progress(seen, data.num_pairs, "items")
    reading.check_bad(told, data.num_pairs, "items")
    return Scored(items, digests, logits)


def _digest(item: Choice) -> bytes:
    return item_digest([item.key, item.pattern, item.statements, item.truth], item.images)


def _score_chunk(
    model: TextImageEncoder, chunk: Sequence[tuple[Choice, list[Image.Image]]], prompt: str, batch_size: int
) -> list[Scores]:
    """Logits of each item, (S, I) each; all images and statements of the chunk are encoded together."""
    if not chunk:
        return []
    images = model.encode_images([image for _, pictures in chunk for image in pictures], batch_size)
    texts = encode_texts(model, [prompt + text for item, _ in chunk for text in item.statements], batch_size)
    scale = logit_scale(model)
    by_text = _split(texts, [len(item.statements) for item, _ in chunk])
    by_image = _split(images, [len(pictures) for _, pictures in chunk])
    return [(scale * text @ image.T).numpy() for text, image in zip(by_text, by_image, strict=True)]


def _split(features: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Rows item by item."""
    ends = accumulate(sizes)
    return (features[end - size : end] for size, end in zip(sizes, ends, strict=True))
