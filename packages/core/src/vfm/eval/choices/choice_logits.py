"""Logits of each item's statements for its images, by model."""

# P items, S statements, I images, N images of a chunk, D width

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.base import UserError
from vfm.data import BadSample, Choice, decode_image, load_choices
from vfm.eval.base import ReadSettings
from vfm.eval.encode.bad_samples import BadSamples
from vfm.eval.encode.encoders import encode_texts, logit_scale
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import item_digest
from vfm.interfaces import ChoiceDataset, Context
from vfm.models import ClipModel, TextImageEncoder, eval_mode, image_tokens
from vfm.train.parallel.sharing import in_batches, leave_to_first, of_all, own_share


@dataclass(frozen=True)
class ChoiceLogits:
    """The usable items of a dataset, and by model the logits of each item's statements for its images, (S, I).

    Attributes:
        numbers: Index of each item in the dataset, to read its images again.
        items: The items without the bytes of their images.
        digests: Hash of each item, including its images (`item_digest`).
    """

    numbers: list[int]
    items: list[Choice]
    digests: list[bytes]
    logits: dict[str, list[NDArray[np.float32]]]

    @property
    def keys(self) -> list[str]:
        """Keys of the items."""
        return [item.key for item in self.items]

    @property
    def patterns(self) -> NDArray[np.int64]:
        """Index of each item's pattern in `names`, (P,)."""
        return np.array(list(map(self.names.index, self.pattern_of_items)))

    @property
    def names(self) -> list[str]:
        """Names of the patterns, in the order in which they occur."""
        return list(dict.fromkeys(self.pattern_of_items))

    @property
    def pattern_of_items(self) -> list[str]:
        """Name of each item's pattern."""
        return [item.pattern for item in self.items]


def choice_logits(
    ctx: Context,
    encoders: Mapping[str, TextImageEncoder],
    data: ChoiceDataset,
    prompt: str,
    reading: ReadSettings,
    check: Callable[[Choice], None] = lambda item: None,
) -> ChoiceLogits:
    """Compute the logits of each item's statements for its images, with the temperature of each model.

    Items with a bad image are skipped, counted and reported.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: The items.
        prompt: Template of a statement.
        reading: Batch size and tolerance of bad samples.
        check: Called with each item. It raises an error for items that cannot be scored.

    Raises:
        UserError: If too many items are bad, a logit is not finite, or `check` raises it.
    """
    numbers: list[int] = []
    items: list[Choice] = []
    digests: list[bytes] = []
    bad = BadSamples(ctx)
    logits: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)

    def compute(chunk: list[Choice]) -> _Chunk:
        for item in chunk:
            check(item)
        # Images are decoded once for all models.
        good: list[tuple[Choice, list[Image.Image]]] = []
        outcomes: list[Choice | BadSample] = []
        for item in chunk:
            images = _decode(item)
            if isinstance(images, BadSample):
                outcomes.append(images)
            else:
                good.append((item, images))
                outcomes.append(item)
        scores = {}
        # Unusable items take no part in the scores, but stay in the outcomes to be counted.
        for name, model in encoders.items():
            scores[name] = _chunk_logits(name, model, good, prompt, reading.batch_size)
        return _Chunk(outcomes, scores)

    chunks = in_batches(load_choices(data), reading.batch_size)
    seen = 0
    for chunk in of_all(map(compute, own_share(chunks)), for_others=_Chunk.without_images):
        # Chunks arrive in the order of the data, from all processes.
        for number, item in enumerate(chunk.items, start=seen):
            if isinstance(item, BadSample):
                bad.skip(item)
            else:
                numbers.append(number)
                items.append(_without_images(item))
                digests.append(_digest(item))
        for name, logits_of_chunk in chunk.logits.items():
            logits[name] += logits_of_chunk
        seen += len(chunk.items)
        ctx.progress(seen, data.num_pairs, "items")
    bad.check(reading, data.num_pairs, "items")
    leave_to_first()
    return ChoiceLogits(numbers, items, digests, logits)


@dataclass(frozen=True)
class _Chunk:
    """Items, or the reasons why they are bad, and by model the logits of the good items."""

    items: list[Choice | BadSample]
    logits: dict[str, list[NDArray[np.float32]]]

    def without_images(self) -> _Chunk:
        """Drop the image bytes. The other processes need them neither for counts nor for progress."""
        items = [item if isinstance(item, BadSample) else _without_images(item) for item in self.items]
        return _Chunk(items, self.logits)


def _without_images(item: Choice) -> Choice:
    return replace(item, images=[b""] * len(item.images))


def _decode(item: Choice) -> list[Image.Image] | BadSample:
    try:
        return [decode_image(image, item.key) for image in item.images]
    except BadSample as problem:
        return problem


def _digest(item: Choice) -> bytes:
    return item_digest([item.key, item.pattern, item.statements, item.truth], item.images)


def _chunk_logits(
    name: str,
    model: TextImageEncoder,
    chunk: Sequence[tuple[Choice, list[Image.Image]]],
    prompt: str,
    batch_size: int,
) -> list[NDArray[np.float32]]:
    """Compute the logits of each item, (S, I). All images and statements of the chunk are encoded together."""
    if not chunk:
        return []
    all_images: list[Image.Image] = []
    all_texts: list[str] = []
    num_images: list[int] = []
    num_texts: list[int] = []
    for item, item_images in chunk:
        all_images += item_images
        num_images.append(len(item_images))
        all_texts += [prompt + text for text in item.statements]
        num_texts.append(len(item.statements))
    # A batch for each item would be too small for a GPU, so the features of all items are split afterwards.
    image_features = torch.split(model.encode_images(all_images, batch_size), num_images)  # (I, D) of each item
    text_features = torch.split(encode_texts(model, all_texts, batch_size, name), num_texts)  # (S, D) of each item
    scale = logit_scale(model)
    logits = []
    for (item, _), images, texts in zip(chunk, image_features, text_features, strict=True):
        scores = scale * texts @ images.T
        check_finite(scores[None], name, [item.key])
        logits.append(scores.numpy())
    return logits


class ClassAndPatches:
    """A CLIP model with the image feature that DIVA's authors use.

    This feature is the class token plus the mean of the patch tokens. The official rule uses the class token only. The
    authors' code draws 76 patches with replacement in every pass, so its scores are random. This class uses all
    patches, the expected value of their draws. Source: DIVA (arXiv:2407.20171),
    `condition/OpenAICLIP_for_clip_model.py` of the authors' code.
    """

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.module = model.module

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Encode images as unit vectors, float32 (N, D) on the CPU.

        Raises:
            UserError: If the model has no patch tokens, or cannot project them into its joint space.
        """
        with eval_mode(self.module), torch.inference_mode():
            starts = range(0, len(images), batch_size)
            parts = [self._embed(images[start : start + batch_size]) for start in starts]
        return torch.cat(parts).clone()

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts with the wrapped model, unchanged."""
        return self.model.encode_texts(texts, batch_size)

    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        tokens = image_tokens(self.model, self.model.preprocess.inputs(images, self.model.device))
        if not tokens.are_projected:
            raise UserError(
                f"{self.model.name}: diva_scoring needs patch tokens in the joint space, which this model does not have"
            )
        return F.normalize((tokens.embeds + tokens.patches.mean(dim=1)).float(), dim=-1).cpu()
