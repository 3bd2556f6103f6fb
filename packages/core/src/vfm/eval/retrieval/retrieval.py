"""Evaluate image-text retrieval in both directions by recall at k, with sheets of the best and worst queries."""

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

from vfm.base import UserError
from vfm.data import BadSample, Sample, Source, decode_image, open_dataset
from vfm.eval.base import ReadSettings
from vfm.eval.encode.encoders import encode_texts
from vfm.eval.encode.features import Encoded, encode_dataset
from vfm.eval.encode.hashes import data_hash
from vfm.eval.encode.image_panels import CaptionedImage, first_of_each, images_panel
from vfm.eval.encode.ranking import hits_at
from vfm.eval.retrieval.retrieval_ranks import RetrievalRanks, nearest, own_cosines, retrieval_ranks
from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import Context, Evaluated, ImagesPanel, ModelResult, PairDataset
from vfm.models import TextImageEncoder
from vfm.statistics import Accuracy
from vfm.train.parallel.sharing import leave_to_first

SHOWN = 6  # queries per sheet


def evaluate_retrieval(config: Retrieval, ctx: Context, encoders: Mapping[str, TextImageEncoder]) -> Evaluated:
    """Evaluate models with `score_retrieval` in the configured language."""
    data = ctx.load(config.data)
    data.check_languages([config.language], config.data)
    language = config.language or data.languages[0]
    return score_retrieval(ctx, encoders, data, language=language, recall_k=config.recall_k, reading=config.reading)


def score_retrieval(
    ctx: Context,
    encoders: Mapping[str, TextImageEncoder],
    data: PairDataset,
    *,
    language: str = "en",
    recall_k: Sequence[int] = (1, 5, 10),
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score models by recall at k, from images to captions and from captions to images.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: Images with captions.
        language: Language of the captions.
        recall_k: Numbers of first results in which a right one counts.
        reading: Batch size and tolerance of bad samples.

    Raises:
        UserError: If all captions are the same.
    """
    source = open_dataset(data)

    def check(sample: Sample) -> None:
        if not sample.texts.get(language):
            raise BadSample("missing_caption", sample.key)

    images = encode_dataset(ctx, source, encoders, reading, check=check)
    captions = CaptionIndex.of(images, language)
    if len(images.samples) > 1 and len(set(captions.texts)) == 1:
        got = f"got {captions.texts[0]!r} for all images"
        raise UserError(f"{ctx.name_of(data)}: expected different captions, {got}")
    texts_by_model = {}
    for name, model in encoders.items():
        texts_by_model[name] = encode_texts(model, captions.texts, reading.batch_size, name)
    leave_to_first()
    last = list(encoders)[-1]  # recipes list the baseline first, so example images are of the last model
    results = {}
    for name, texts in texts_by_model.items():
        ranks = retrieval_ranks(images.features[name], texts, torch.from_numpy(captions.image))
        scores = recall_scores(ranks, captions.image, recall_k)
        results[name] = ModelResult(scores, _predictions(images, captions, ranks), _rank_facts(ranks))
        if name == last:
            for panel in _Examples(source, images, captions, images.features[name], texts, ranks).sheets(ctx, name):
                ctx.panel(panel)
    return Evaluated(data_hash(data, images.digests), results, language)


@dataclass(frozen=True)
class CaptionIndex:
    """All captions in one list, and the index of the image that each of them describes, (M,)."""

    texts: list[str]
    image: NDArray[np.int64]

    @classmethod
    def of(cls, images: Encoded, language: str) -> CaptionIndex:
        """Collect the captions of the encoded samples, image by image."""
        counts = []
        texts = []
        for sample in images.samples:
            counts.append(len(sample.texts[language]))
            texts += sample.texts[language]
        return cls(texts, np.repeat(np.arange(len(counts)), counts))


def recall_scores(ranks: RetrievalRanks, image_of_text: NDArray[np.int64], recall_k: Sequence[int]) -> list[Accuracy]:
    """Compute recall at each k with its chance level, first of images by captions, then of captions by images.

    Args:
        ranks: Ranks in both directions.
        image_of_text: Index of the image of each text, (M,).
        recall_k: Values of k.
    """
    counts = np.bincount(image_of_text)
    num_images = len(counts)
    num_texts = len(image_of_text)
    # Captions of one image are not independent. With one caption per image there is nothing to group.
    groups = image_of_text if num_texts > num_images else None
    scores = []
    for k in recall_k:
        hits = hits_at(ranks.image_retrieval, k)
        chance = min(1.0, k / num_images)
        scores.append(Accuracy(f"image_retrieval_recall@{k}", hits, groups, chance=chance))
    for k in recall_k:
        hits = hits_at(ranks.text_retrieval, k)
        scores.append(Accuracy(f"text_retrieval_recall@{k}", hits, chance=_chance_of_a_caption(counts, k)))
    return scores


def _chance_of_a_caption(counts: NDArray[np.int64], k: int) -> float:
    """Compute the mean chance that k random captions include one of an image, from the captions per image, (N,)."""
    total = int(counts.sum())
    # A random draw of k captions misses all m captions of an image with probability C(M - m, k) / C(M, k).
    misses = {}
    for m in set(counts.tolist()):
        misses[m] = comb(total - m, k) / comb(total, k) if k <= total else 0.0
    return 1 - float(np.mean([misses[m] for m in counts.tolist()]))


def _predictions(images: Encoded, captions: CaptionIndex, ranks: RetrievalRanks) -> dict[str, dict[str, object]]:
    keys = images.keys
    by_text = {"key": [keys[i] for i in captions.image], "text": captions.texts, "rank": ranks.image_retrieval}
    return {"image_retrieval": by_text, "text_retrieval": {"key": keys, "rank": ranks.text_retrieval}}


def _rank_facts(ranks: RetrievalRanks) -> dict[str, dict[str, float]]:
    """Compute mean and median rank, counted from 1 as in open_clip."""
    means = {}
    medians = {}
    for name, positions in (("image_retrieval", ranks.image_retrieval), ("text_retrieval", ranks.text_retrieval)):
        means[name] = float(np.mean(positions)) + 1
        medians[name] = float(np.floor(np.median(positions))) + 1
    return {"mean_rank": means, "median_rank": medians}


@dataclass(frozen=True)
class _Examples:
    """Images and captions that a model retrieves best and worst."""

    source: Source
    images: Encoded
    captions: CaptionIndex
    image_features: Tensor
    text_features: Tensor
    ranks: RetrievalRanks

    def sheets(self, ctx: Context, model: str) -> list[ImagesPanel]:
        """Draw captions that find their image, captions that miss it, and images that miss their captions."""
        image_of_text = torch.from_numpy(self.captions.image)
        cosine = own_cosines(self.image_features, self.text_features, image_of_text).numpy()
        by_rank = np.lexsort((-cosine, self.ranks.image_retrieval))  # best first
        best = first_of_each(by_rank, self.captions.image, SHOWN)
        worst = first_of_each(by_rank[::-1], self.captions.image, SHOWN)
        lost = np.argsort(-self.ranks.text_retrieval, kind="stable")[:SHOWN]
        hits = list(map(self._own_image, best))
        misses = []
        for text in worst:
            misses += [self._own_image(text), self._first_image(text)]
        lost_images = list(map(self._with_first_caption, lost))
        folder = ctx.directory
        note = "Each caption's own image, then the image that came first instead."
        return [
            images_panel(folder, "found", f"Captions that find their image best ({model})", hits, order=50),
            images_panel(folder, "missed", f"Captions that miss their image ({model})", misses, note=note, order=51),
            images_panel(folder, "lost", f"Images that miss their captions ({model})", lost_images, order=52),
        ]

    def _image(self, image: int) -> Image.Image:
        sample = self.source[self.images.numbers[image]]
        return decode_image(sample.image, sample.key)

    def _own_image(self, text: int) -> CaptionedImage:
        rank = int(self.ranks.image_retrieval[text]) + 1
        image = int(self.captions.image[text])
        return CaptionedImage(self._image(image), f"“{self.captions.texts[text]}” · rank {rank}", rank == 1)

    def _first_image(self, text: int) -> CaptionedImage:
        first = int(nearest(self.text_features[text : text + 1], self.image_features, 1)[0, 0])
        return CaptionedImage(self._image(first), "came first", bool(self.ranks.image_retrieval[text] == 0))

    def _with_first_caption(self, image: int) -> CaptionedImage:
        first = int(nearest(self.image_features[image : image + 1], self.text_features, 1)[0, 0])
        own_caption = self.captions.texts[int(np.argmax(self.captions.image == image))]
        rank = int(self.ranks.text_retrieval[image]) + 1
        caption = f"“{self.captions.texts[first]}” · its own: “{own_caption}”, best rank {rank}"
        return CaptionedImage(self._image(image), caption, rank == 1)
