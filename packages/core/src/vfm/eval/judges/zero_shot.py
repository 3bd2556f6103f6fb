"""Zero-shot classification: the images of a set through all models once, then each model's own classifier."""

# C classes, T templates, N images, D width

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.artifacts import LabeledDataset, TaggedImages
from vfm.config import UserError
from vfm.eval.encode import Reading, TextImageEncoder
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.answers import Answered, encode_answered, hardest, judged, judged_ranks
from vfm.eval.zero_shot import ensemble_templates, fill_templates, predicted_classes, true_class_ranks
from vfm.stage import Context

NUMBERED, NUM_DIGITS = re.compile(r"n?\d+"), 10  # WordNet's numbers as folders of ImageNet have them; digits are words


@dataclass(frozen=True)
class Wording:
    """How the classes are written.

    templates: prompts with a {} for the class name; None: the data set's own.
    class_names: by label, instead of the data set's own, in another language perhaps.
    present: only classes that have images can be answers; of several labels those without count for nothing anyway.
    """

    templates: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    present: bool = False


def judge_zero_shot(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: Answered,
    *,
    wording: Wording = Wording(),
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge models by class names in prompts: which class an image has, or how well each label ranks the images.

    Returns:
        The hash of the data and a judgement for each model.

    Raises:
        UserError: the class names are not as many as the labels, or all images that can be answered are of one class.
    """
    names, templates = list(wording.class_names or data.class_names), list(wording.templates or data.templates)
    if len(names) != len(data.class_names):
        raise UserError(f"{len(names)} class_names for a data set of {len(data.class_names)} classes")
    if len(names) > NUM_DIGITS and all(NUMBERED.fullmatch(name) for name in names):
        how = "give class_names, or names_of where the data come in"
        ctx.warn(f"the classes are called {names[0]!r}, {names[1]!r}, ..., which says nothing to a text tower: {how}")
    images, answers = encode_answered(ctx, models, data, reading)
    some = wording.present and isinstance(data, LabeledDataset)
    places = torch.unique(answers) if some else torch.arange(len(names))
    if len(places) < 2:
        raise UserError("all images are of one class; nothing can be mistaken for another")
    judgements = {}
    for name, model in models.items():
        features = images.features[name]
        classifier = write_classifier(model, [names[place] for place in places], templates, reading.batch_size)
        details = {"templates": templates, **({"class_names": names} if wording.class_names else {})}
        if isinstance(data, TaggedImages):
            judgements[name] = judged((features @ classifier.T).numpy(), answers, images.keys, data, "", details)
            continue
        ranks = true_class_ranks(features, classifier, torch.searchsorted(places, answers))
        predicted = places.numpy()[predicted_classes(features, classifier)]
        judgements[name] = judged_ranks(
            ranks, predicted, answers.numpy(), images.keys, data, "", details, num_answers=len(places)
        )
    ctx.panel(hardest(data, answers, judgements))
    return data_hash(data, images.digests), judgements


def write_classifier(
    model: TextImageEncoder, class_names: Sequence[str], templates: Sequence[str], batch_size: int
) -> Tensor:
    """One unit vector a class, (C, D): the ensemble of its prompts."""
    prompts = model.encode_texts(fill_templates(class_names, templates), batch_size)
    return ensemble_templates(prompts.view(len(class_names), len(templates), -1))
