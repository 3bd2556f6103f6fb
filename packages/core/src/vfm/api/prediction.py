"""Predict classes of images or videos, objects and regions, or the nearest entries of an index.

Imports torch.
"""

# B images, K classes or entries of an index

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vfm.api.inputs import (
    AnyEncoder,
    AnyImage,
    AnyModel,
    artifact_of,
    full_name,
    image_list,
    image_names,
    open_device,
    open_encoder,
    read_classes,
    readable_images,
)
from vfm.api.paths import AnyPath, as_place
from vfm.api.results import Results, as_table
from vfm.base import UserError, load_function
from vfm.data.prompts.templates import read_sentences, sentences_of
from vfm.eval import Instances, check_finite, logit_scale, read_embeddings, zero_shot_classifier
from vfm.eval.classify.classify import columns_of
from vfm.eval.classify.zero_shot import sentence_classifier
from vfm.eval.encode.embeddings import SavedEmbeddings
from vfm.interfaces import DenseCheckpoint, VideoClassifier, naming_extras
from vfm.models import PooledVision, class_names_of
from vfm.models.vision.vision import has_independent_labels

TEMPLATE = "a photo of a {}."
TEXTS_AT_A_TIME = 256  # texts take little memory
PREDICTION_COLUMNS = {"image": pa.string(), "rank": pa.int64(), "label": pa.string()}
REGION_COLUMNS = {"image": pa.string(), "label": pa.string(), "share": pa.float64()}
OBJECT_COLUMNS = {
    "image": pa.string(),
    "label": pa.string(),
    **dict.fromkeys(("score", "left", "top", "right", "bottom"), pa.float64()),
}


@dataclass(frozen=True, repr=False)
class Predictions(Results):
    """The best classes of each image or video, or the nearest entries of an index.

    Attributes:
        images: Names of the B images.
        labels: Names of the K classes or entries.
        scores: Probabilities, or cosine similarities with an index, float32 (B, K) on the CPU.
        top: Number of classes per image in the table.
        kind: Name of the score column, `probability` or `similarity`.
    """

    images: list[str]
    labels: list[str]
    scores: Tensor
    top: int = 5
    kind: str = "probability"

    @property
    def title(self) -> str:
        """One line about the results."""
        shown = min(self.top, len(self.labels))
        plural = "" if len(self.images) == 1 else "s"
        return f"best {shown} of {len(self.labels):,}, for {len(self.images):,} image{plural}"

    def best(self) -> list[list[tuple[str, float]]]:
        """List (label, score) of the `top` best for each image, best first."""
        best = self.scores.topk(min(self.top, len(self.labels)))
        ranked = []
        for labels, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            ranked.append([(self.labels[label], score) for label, score in zip(labels, scores, strict=True)])
        return ranked

    def table(self) -> Any:
        """Build an Arrow table with the columns image, rank (from 1), label, and probability or similarity."""
        rows = []
        for image, best in zip(self.images, self.best(), strict=True):
            for rank, (label, score) in enumerate(best, start=1):
                rows.append({"image": image, "rank": rank, "label": label, self.kind: score})
        return as_table(rows, PREDICTION_COLUMNS | {self.kind: pa.float64()})


@dataclass(frozen=True, repr=False)
class Regions(Results):
    """Objects or regions predicted by a model with a dense head.

    Attributes:
        images: Names of the B images.
        rows: One for each object (image, label, score, left, top, right, bottom) or region (image, label, share).
        found: Output of the model for each image: `Instances`, or the label map (H, W).
    """

    images: list[str]
    rows: list[dict[str, Any]]
    found: list[Any]

    @property
    def title(self) -> str:
        """One line about the results."""
        empty = len(self.images) - len({row["image"] for row in self.rows})
        none = f"; none in {empty:,} of them" if empty else ""
        return f"{len(self.rows):,} objects or regions in {len(self.images):,} images{none}"

    def table(self) -> Any:
        """Build an Arrow table of the objects with their boxes in pixels, or of the regions with their area shares."""
        has_objects = any(isinstance(output, Instances) for output in self.found)
        return as_table(self.rows, OBJECT_COLUMNS if has_objects else REGION_COLUMNS)


def predict(
    model: AnyModel,
    images: AnyImage | Sequence[AnyImage],
    classes: AnyPath | Sequence[str] | None = None,
    *,
    index: AnyPath | None = None,
    template: str = TEMPLATE,
    prompts: AnyPath | None = None,
    top: int = 5,
    min_score: float = 0.3,
    pretrained: str | None = None,
    device: str = "auto",
    warn: Callable[[str], None] = warnings.warn,
) -> Predictions | Regions:
    """Classify, detect or segment images or videos, or find the nearest entries of an index.

    Args:
        model: Folder or artifact of a checkpoint, an open_clip or timm name, `hf-hub:org/model`, or a loaded model.
        images: One or several images, each a path or a PIL image, or folders. A video classifier takes videos.
        classes: Names to choose from: a list, a file with one per line, or comma-separated words. Default: the classes
            of the head.
        index: A file of embeddings (`vfm.Embeddings.save`, `vfm embed`), to find the nearest entries instead.
        template: Prompt of a CLIP model, with `{}` for the class.
        prompts: JSON file with sentences of each class, {class: [sentences]}. It replaces the template and, if
            `classes` is not given, the class names (CuPL, arXiv:2209.03320).
        top: Number of results per image in the table.
        min_score: Smallest score of a detected object.
        pretrained: Tag of an open_clip name, or a file of weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        warn: Called with a line if the index was made with another model, or a file of a folder cannot be read.

    Returns:
        `Predictions`, or `Regions` if the model has a dense head.

    Raises:
        UserError: If there is no such model, image or class, or an output is not finite.
    """
    choices = (classes is not None, index is not None, prompts is not None, template != TEMPLATE)
    _check_choices(*choices)
    if top < 1:
        raise UserError(f"top: must be at least 1, got {top}")
    listed = image_list(images)
    # Models of videos and models with a dense head have their own classes.
    classifier = artifact_of(model, VideoClassifier)
    if classifier:
        if any(choices):
            where = as_place(classifier)
            raise UserError(f"{where}: a video classifier has its own classes: no classes, template, prompts or index")
        with naming_extras("a classifier of videos"):
            predict_videos = load_function("vfm.api.videos:predict")
        labels, scores = predict_videos(classifier, listed, device)
        return Predictions(image_names(listed), labels, scores, top)
    dense = artifact_of(model, DenseCheckpoint)
    if dense:
        if any(choices) or pretrained:
            where = as_place(dense)
            raise UserError(f"{where}: it has a dense head: no classes, template, prompts, index or pretrained tag")
        with naming_extras("a model with a dense head"):
            find_regions = load_function("vfm.api.dense:find_regions")
        listed, opened = readable_images(listed, warn)
        regions: Regions = find_regions(dense, opened, image_names(listed), open_device(device), min_score)
        return regions
    # All other models compare an image with texts, with the outputs of a head, or with an index.
    chosen = read_classes(classes) if classes is not None else []
    sentences: list[list[str]] = []
    if prompts is not None:
        chosen = chosen or list(read_sentences(as_place(prompts)))
        sentences = sentences_of(as_place(prompts), chosen, others=True)
    listed, opened = readable_images(listed, warn)
    names = image_names(listed)
    encoder = open_encoder(model, pretrained, open_device(device))
    name = full_name(model, pretrained)
    if index is not None:
        known = read_embeddings(Path(index))
        labels = [f"{key}  {text}".rstrip() for key, text in zip(known.keys, known.texts, strict=True)]
        scores = similarities(encoder.encode_images(opened), name, known, Path(index), warn)
    else:
        labels, scores = class_probabilities(encoder, name, opened, chosen, template, sentences)
    check_finite(scores, name, names)
    kind = "probability" if index is None else "similarity"
    return Predictions(names, labels, scores, top, kind)


def _check_choices(classes: bool, index: bool, prompts: bool, template: bool) -> None:
    """Check that the given arguments can be combined."""
    if classes and index:
        raise UserError("give either classes (names to choose from) or an index (embeddings to search), not both")
    if prompts and (index or template):
        raise UserError("prompts has the sentences of each class: give no template and no index with it")
    if index and template:
        raise UserError("give either a template (the prompt of classes) or an index (embeddings to search), not both")


def class_probabilities(
    encoder: AnyEncoder,
    model: str,
    images: Sequence[Image.Image],
    names: list[str],
    template: str,
    sentences: list[list[str]],
) -> tuple[list[str], Tensor]:
    """Compute class names and their probabilities for each image, (B, K). Independent labels use sigmoids.

    Args:
        encoder: A CLIP model, or a vision model with a classification head.
        model: Its name, for error messages.
        images: B images.
        names: Names of the classes. Empty: the classes of the head.
        template: Prompt of a CLIP model, with `{}` for the class.
        sentences: Sentences for each class, in place of the template. Empty: none.

    Raises:
        UserError: If a CLIP model has no names, an encoder has no head or is given sentences, or the number of names is
            wrong.
    """
    if isinstance(encoder, PooledVision):
        if sentences or template != TEMPLATE:
            raise UserError(f"{model}: prompts and templates are for CLIP models; it is an encoder without texts")
        num_classes = int(encoder.module.num_classes)  # type: ignore[arg-type]
        if not num_classes:
            raise UserError(f"{model}: it has no classification head; give an index, a file from `vfm embed`")
        known = names or class_names_of(encoder.module) or [f"class {number}" for number in range(num_classes)]
        columns_of(known, num_classes, known, model)
        logits = encoder.logits(list(images))
        return known, logits.sigmoid() if has_independent_labels(encoder.module) else logits.softmax(dim=-1)
    if not names:
        raise UserError(f"{model}: a CLIP model needs classes to choose from; give classes or an index")
    if sentences:
        classifier = sentence_classifier(encoder, sentences, TEXTS_AT_A_TIME, model)
    else:
        classifier = zero_shot_classifier(encoder, names, [template], TEXTS_AT_A_TIME, model)
    logits = logit_scale(encoder) * encoder.encode_images(list(images)) @ classifier.T
    return names, logits.softmax(dim=-1)


def similarities(
    vectors: Tensor, model: str, known: SavedEmbeddings, index: Path, warn: Callable[[str], None]
) -> Tensor:
    """Compute the cosine similarity of images or texts to each entry of an index.

    Args:
        vectors: Unit vectors of the images or texts, (B, D).
        model: Full name of their model. It is compared with the name in the index.
        known: The index.
        index: Its file, for messages.
        warn: Called with a line if another model made the index.

    Returns:
        (B, K).

    Raises:
        UserError: If the embeddings of the index have another width, or are not finite.
    """
    if vectors.shape[1] != known.vectors.shape[1]:
        origin = f" of {known.model}" if known.model else ""
        raise UserError(
            f"{index}: expected embeddings with {vectors.shape[1]} channels, as {model} makes them, got"
            f" embeddings{origin} with {known.vectors.shape[1]}; use the same model for both"
        )
    if known.model and known.model != model:
        warn(f"{index}: made with {known.model}, not with {model}; similarities of different models mean nothing")
    check_finite(known.vectors, str(index), known.keys)
    return vectors @ normalize(known.vectors, dim=-1).T
