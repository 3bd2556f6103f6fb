"""Zero-shot classification by class names: the text tower writes the classifier, the image tower reads it.

Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, section 3.1
(arXiv:2103.00020); the ensemble is the one of open_clip and CLIP_benchmark.
"""

# C classes, T templates, N images, D width

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.data.templates import check_templates
from vfm.eval.ranking import MAX_SCORES, best_ranks, row_blocks


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class name in every template, class by class: C x T prompts.

    A template holds a `{}` or `{c}` (CLIP_benchmark's spelling).

    Raises:
        UserError: a template has no place for the class name.
    """
    spelled = check_templates(templates)
    return [template.replace("{}", name) for name in class_names for template in spelled]


def ensemble_templates(template_features: Tensor) -> Tensor:
    """One unit vector a class from the text features of its prompts.

    Each prompt's features are normalised first, so that no template weighs more for being longer.

    Args:
        template_features: (C, T, D), normalised or not.

    Returns:
        The classifier, (C, D).
    """
    return F.normalize(F.normalize(template_features, dim=-1).mean(dim=1), dim=-1)


def true_class_ranks(
    image_features: Tensor, classifier: Tensor, labels: Tensor, *, max_scores: int = MAX_SCORES
) -> NDArray[np.int64]:
    """How many classes score at least as high as the true one, for each image: 0 is right at top-1.

    Args:
        image_features: (N, D), normalised or not.
        classifier: unit vectors, (C, D).
        labels: (N,) integers in 0..C-1.
    """
    classes = torch.arange(len(classifier), device=labels.device)
    return best_ranks(F.normalize(image_features, dim=-1), classifier, labels, classes, max_scores=max_scores)


def predicted_classes(image_features: Tensor, classifier: Tensor, *, max_scores: int = MAX_SCORES) -> NDArray[np.int64]:
    """The class each image is taken for, (N,); of equal scores the first class."""
    blocks = row_blocks(len(image_features), len(classifier), max_scores)
    return np.concatenate([(image_features[b] @ classifier.T).argmax(dim=1).cpu().numpy() for b in blocks])
