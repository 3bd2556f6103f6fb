"""Zero-shot classification by class names: text features of prompts are the weights of a classifier.

Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, section 3.1
(arXiv:2103.00020). Prompts are averaged as in open_clip and CLIP_benchmark.
"""

# C classes, T templates, P sentences of all classes, N images, D width

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.base import UserError
from vfm.data.prompts.templates import check_templates, sentences_of
from vfm.eval.base import ReadSettings
from vfm.eval.classify.checks import check_zero_shot_classes
from vfm.eval.classify.classification import ClassDataset, encode_with_targets, result_from_ranks, result_from_scores
from vfm.eval.classify.classification_panels import add_class_panels
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.encode.encoders import encode_texts
from vfm.eval.encode.hashes import data_hash
from vfm.eval.encode.ranking import MAX_SCORES, best_ranks, row_blocks
from vfm.interfaces import Context, Evaluated, LabeledDataset, TaggedImages
from vfm.models import TextImageEncoder
from vfm.train.parallel.sharing import leave_to_first

# Numbers instead of names, as in ImageNet's folders (n01440764), mean nothing to a text tower. Up to ten numbers are
# allowed, since the classes may be digits, which are words.
NUMBERED = re.compile(r"n?\d+")
NUM_DIGITS = 10


@dataclass(frozen=True)
class Prompts:
    """How class names become texts.

    Attributes:
        templates: Prompts with a {} for the class name. Default: the templates of the dataset.
        sentences: File with the sentences of each class, instead of templates (`read_sentences`).
        class_names: Names by label that replace the dataset's names, for example in another language.
        only_present: Predict only classes that have images. For several labels per image it has no effect, since labels
            without images never count.
    """

    templates: Sequence[str] | None = None
    sentences: str | None = None
    class_names: Sequence[str] | None = None
    only_present: bool = False


def evaluate_zero_shot(config: ZeroShot, ctx: Context, encoders: Mapping[str, TextImageEncoder]) -> Evaluated:
    """Evaluate models with `score_zero_shot` and the configured prompts."""
    data = ctx.load(config.data)
    check_zero_shot_classes(config, data)
    prompts = Prompts(config.templates, config.prompts, config.class_names, config.answers == "present")
    evaluated = score_zero_shot(ctx, encoders, data, prompts=prompts, reading=config.reading)
    return replace(evaluated, language=config.language)


def score_zero_shot(
    ctx: Context,
    encoders: Mapping[str, TextImageEncoder],
    data: ClassDataset,
    *,
    prompts: Prompts = Prompts(),
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score models by class names in prompts.

    Images with one class are classified. For several labels per image, the images are ranked for each label.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: The images.
        prompts: How class names become texts.
        reading: Batch size and tolerance of bad samples.

    Raises:
        UserError: If there is not one class name per label, sentences do not fit the names, or fewer than two classes
            can be predicted.
    """
    names = list(prompts.class_names or data.class_names)
    templates = list(prompts.templates or data.templates)
    if len(names) != len(data.class_names):
        raise UserError(f"class_names: expected one per class, {len(data.class_names)}, got {len(names)}")
    if len(names) > NUM_DIGITS and all(map(NUMBERED.fullmatch, names)):
        fix = "give class_names here, or names_of in the stage of the dataset"
        ctx.warn(f"class names {names[0]!r}, {names[1]!r}, ... are numbers, which mean nothing to a text tower: {fix}")
    images, targets = encode_with_targets(ctx, encoders, data, reading)
    only_present = prompts.only_present and isinstance(data, LabeledDataset)
    candidates = torch.unique(targets) if only_present else torch.arange(len(names))
    if len(candidates) < 2:
        raise UserError(f"{ctx.name_of(data)}: expected images of two or more classes, got one class")
    classes = [names[label] for label in candidates]
    classifiers = {}
    facts: dict[str, object]
    if prompts.sentences:
        sentences = sentences_of(prompts.sentences, names)
        chosen = [sentences[label] for label in candidates]
        for name, model in encoders.items():
            classifiers[name] = sentence_classifier(model, chosen, reading.batch_size, name)
        facts = {"prompts": prompts.sentences}
    else:
        for name, model in encoders.items():
            classifiers[name] = zero_shot_classifier(model, classes, templates, reading.batch_size, name)
        facts = {"templates": templates}
    if prompts.class_names:
        facts["class_names"] = names
    leave_to_first()
    results = {}
    for name, classifier in classifiers.items():
        features = images.features[name]
        details = dict(facts)
        if isinstance(data, TaggedImages):
            scores = (features @ classifier.T).numpy()
            results[name] = result_from_scores(scores, targets, images.keys, data, "", details)
            continue
        # The classifier's rows are the candidates, so labels are mapped to rows, and predicted rows back to labels.
        ranks = true_class_ranks(features, classifier, torch.searchsorted(candidates, targets))
        predicted = candidates.numpy()[predicted_classes(features, classifier)]
        results[name] = result_from_ranks(
            ranks, predicted, targets.numpy(), images.keys, data, "", details, num_answers=len(candidates)
        )
    add_class_panels(ctx, data, images, targets, results)
    return Evaluated(data_hash(data, images.digests), results)


def zero_shot_classifier(
    model: TextImageEncoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int,
    name: str = "the model",
) -> Tensor:
    """Compute one unit vector per class, as the ensemble of its prompts.

    Args:
        model: Text encoder.
        class_names: Names of C classes.
        templates: Prompts with a place for the class name.
        batch_size: Texts encoded at a time.
        name: Name of the model, for the error.

    Returns:
        (C, D).

    Raises:
        UserError: If a feature is not finite.
    """
    prompts = fill_templates(class_names, templates)
    features = encode_texts(model, prompts, batch_size, name)
    return ensemble_templates(features.view(len(class_names), len(templates), -1))


def sentence_classifier(
    model: TextImageEncoder, sentences: Sequence[Sequence[str]], batch_size: int, name: str = "the model"
) -> Tensor:
    """Compute one unit vector per class, as the ensemble of any number of sentences about it.

    Args:
        model: Text encoder.
        sentences: Sentences of each of C classes.
        batch_size: Texts encoded at a time.
        name: Name of the model, for the error.

    Returns:
        (C, D).

    Raises:
        UserError: If a feature is not finite.
    """
    features = encode_texts(model, list(chain.from_iterable(sentences)), batch_size, name)
    parts = features.split(list(map(len, sentences)))  # type: ignore[no-untyped-call]  # of (P, D)
    return torch.cat([ensemble_templates(part[None]) for part in parts])


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Fill every template with every class name, class by class.

    This gives C x T prompts. A template has a `{}` or `{c}` (as in CLIP_benchmark) for the class name.

    Raises:
        UserError: If a template has no place for the class name.
    """
    spelled = check_templates(templates)
    return [template.replace("{}", name) for name, template in product(class_names, spelled)]


def ensemble_templates(template_features: Tensor) -> Tensor:
    """Average the text features of the prompts of each class to a unit vector.

    Features are normalised first, so that no prompt weighs more because its vector is longer.

    Args:
        template_features: (C, T, D), normalised or not.

    Returns:
        The classifier, (C, D).
    """
    return F.normalize(F.normalize(template_features, dim=-1).mean(dim=1), dim=-1)


def true_class_ranks(
    image_features: Tensor, classifier: Tensor, labels: Tensor, *, max_scores: int = MAX_SCORES
) -> NDArray[np.int64]:
    """Count for each image the other classes that score at least as high as the true one: 0 is right at top-1.

    Args:
        image_features: (N, D), normalised or not.
        classifier: Unit vectors, (C, D).
        labels: (N,) integers in 0..C-1.
        max_scores: Number of scores held at once.
    """
    classes = torch.arange(len(classifier), device=labels.device)
    return best_ranks(F.normalize(image_features, dim=-1), classifier, labels, classes, max_scores=max_scores)


def predicted_classes(image_features: Tensor, classifier: Tensor, *, max_scores: int = MAX_SCORES) -> NDArray[np.int64]:
    """Predict the class of each image. Among equal scores the first class wins.

    Args:
        image_features: (N, D).
        classifier: (C, D).
        max_scores: Number of scores held at once.

    Returns:
        (N,).
    """
    blocks = row_blocks(len(image_features), len(classifier), max_scores)
    return np.concatenate([(image_features[b] @ classifier.T).argmax(dim=1).cpu().numpy() for b in blocks])
