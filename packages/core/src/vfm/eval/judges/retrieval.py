"""Retrieval both ways, with the best and the worst of it as pictures."""

# N images, M texts, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.artifacts import PairDataset
from vfm.config import UserError
from vfm.data import BadSample, Sample, Source, open_dataset
from vfm.data.images import decode_image
from vfm.eval.compare import Verdict
from vfm.eval.encode import Encoded, Reading, TextImageEncoder, encode_dataset, encode_texts
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.pictures import Shown, images_panel
from vfm.eval.ranking import hits_at
from vfm.eval.retrieval import RetrievalRanks, nearest, own_cosines, retrieval_ranks
from vfm.panels import ImagesPanel
from vfm.stage import Context

SHOWN = 6  # queries a sheet


def judge_retrieval(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: PairDataset,
    *,
    language: str = "en",
    recall_k: Sequence[int] = (1, 5, 10),
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge models by recall at k, images to captions and captions to images.

    Returns:
        The hash of the data and a judgement for each model.

    Raises:
        UserError: all captions are the same.
    """
    source = open_dataset(data)

    def check(sample: Sample) -> None:
        if not sample.texts.get(language):
            raise BadSample("missing_caption", sample.key)

    images = encode_dataset(ctx, source, models, reading, check=check)
    captions = Captions.of(images, language)
    if len(images.samples) > 1 and len(set(captions.texts)) == 1:
        raise UserError(f"all captions are {captions.texts[0]!r}: retrieval by them says nothing")
    last = list(models)[-1]  # the one that the others lead to: its pictures are shown
    judgements = {}
    for name, model in models.items():
        texts = encode_texts(model, captions.texts, reading.batch_size)
        ranks = retrieval_ranks(images.features[name], texts, torch.from_numpy(captions.image))
        verdicts = recall_verdicts(ranks, captions.image, recall_k)
        judgements[name] = Judgement(verdicts, _predictions(images, captions, ranks), _rank_facts(ranks))
        if name == last:
            for panel in _Examples(source, images, captions, images.features[name], texts, ranks).sheets(ctx, name):
                ctx.panel(panel)
    return data_hash(data, images.digests), judgements


@dataclass(frozen=True)
class Captions:
    """All captions in one list, and the image that each describes, (M,)."""

    texts: list[str]
    image: NDArray[np.int64]

    @classmethod
    def of(cls, images: Encoded, language: str) -> Captions:
        """The captions of the encoded samples, image by image."""
        counts = [len(sample.texts[language]) for sample in images.samples]
        texts = [text for sample in images.samples for text in sample.texts[language]]
        return cls(texts, np.repeat(np.arange(len(counts)), counts))


def recall_verdicts(ranks: RetrievalRanks, image_of_text: NDArray[np.int64], recall_k: Sequence[int]) -> list[Verdict]:
    """Recall at each k: of images by their captions, then of captions by their image, with what chance would give."""
    counts = np.bincount(image_of_text)
    num_images, num_texts = len(counts), len(image_of_text)
    groups = image_of_text if num_texts > num_images else None
    verdicts = []
    for k in recall_k:
        found = hits_at(ranks.image_retrieval, k)
        chance = min(1.0, k / num_images)
        verdicts.append(Verdict(f"image_retrieval_recall@{k}", found, groups, chance=chance))
    for k in recall_k:
        # A blind draw of k captions misses all of an image's m with chance C(M - m, k) / C(M, k).
        misses = {
            int(m): comb(num_texts - int(m), k) / comb(num_texts, k) if k <= num_texts else 0.0 for m in set(counts)
        }
        chance = 1 - float(np.mean([misses[int(m)] for m in counts]))
        verdicts.append(Verdict(f"text_retrieval_recall@{k}", hits_at(ranks.text_retrieval, k), chance=chance))
    return verdicts


def _predictions(images: Encoded, captions: Captions, ranks: RetrievalRanks) -> dict[str, dict[str, object]]:
    keys = images.keys
    by_text = {"key": [keys[i] for i in captions.image], "text": captions.texts, "rank": ranks.image_retrieval}
    return {"image_retrieval": by_text, "text_retrieval": {"key": keys, "rank": ranks.text_retrieval}}


def _rank_facts(ranks: RetrievalRanks) -> dict[str, dict[str, float]]:
    """Mean and median rank, counted from 1 as open_clip does."""
    pairs = {"image_retrieval": ranks.image_retrieval, "text_retrieval": ranks.text_retrieval}
    return {
        "mean_rank": {name: float(np.mean(r)) + 1 for name, r in pairs.items()},
        "median_rank": {name: float(np.floor(np.median(r))) + 1 for name, r in pairs.items()},
    }


@dataclass(frozen=True)
class _Examples:
    """The pictures and captions that a model is best and worst at."""

    source: Source
    images: Encoded
    captions: Captions
    image_features: Tensor
    text_features: Tensor
    ranks: RetrievalRanks

    def sheets(self, ctx: Context, model: str) -> list[ImagesPanel]:
        """Captions that find their image, captions that miss it, images that miss their captions."""
        image_of_text = torch.from_numpy(self.captions.image)
        cosine = own_cosines(self.image_features, self.text_features, image_of_text).numpy()
        by_rank = np.lexsort((-cosine, self.ranks.image_retrieval))  # best first
        best, worst = _one_an_image(by_rank, self.captions.image), _one_an_image(by_rank[::-1], self.captions.image)
        lost = np.argsort(-self.ranks.text_retrieval, kind="stable")[:SHOWN]
        found = [self._own(text) for text in best]
        missed = [shown for text in worst for shown in (self._own(text), self._instead(text))]
        lost_ones = [self._captioned(image) for image in lost]
        folder, others = ctx.directory, "Each caption's own image, then the image that came first instead."
        return [
            images_panel(folder, "found", f"Captions that find their image best ({model})", found, order=50),
            images_panel(folder, "missed", f"Captions that miss their image ({model})", missed, note=others, order=51),
            images_panel(folder, "lost", f"Images that miss their captions ({model})", lost_ones, order=52),
        ]

    def _picture(self, image: int) -> Image.Image:
        sample = self.source[self.images.numbers[image]]
        return decode_image(sample.image, sample.key)

    def _own(self, text: int) -> Shown:
        rank = int(self.ranks.image_retrieval[text]) + 1
        return Shown(self._picture(int(self.captions.image[text])), f"“{self.captions.texts[text]}” · rank {rank}")

    def _instead(self, text: int) -> Shown:
        first = int(nearest(self.text_features[text : text + 1], self.image_features, 1)[0, 0])
        return Shown(self._picture(first), "came first")

    def _captioned(self, image: int) -> Shown:
        first = int(nearest(self.image_features[image : image + 1], self.text_features, 1)[0, 0])
        own = self.captions.texts[int(np.argmax(self.captions.image == image))]
        rank = int(self.ranks.text_retrieval[image]) + 1
        return Shown(self._picture(image), f"“{self.captions.texts[first]}” · its own: “{own}”, best rank {rank}")


def _one_an_image(texts: NDArray[np.int64], image_of_text: NDArray[np.int64]) -> list[int]:
    """The first `SHOWN` texts that belong to different images."""
    _, first = np.unique(image_of_text[texts], return_index=True)
    return [int(texts[place]) for place in np.sort(first)[:SHOWN]]
