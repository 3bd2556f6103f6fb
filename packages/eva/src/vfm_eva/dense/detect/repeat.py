"""Repeat images with rare classes, as `vfm.data.RepeatedEpochs` draws them."""

# N images, K classes

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm.data.annotated import ObjectArrays


def repeat_factors(objects: ObjectArrays, num_images: int, num_classes: int, threshold: float) -> NDArray[np.float64]:
    """Compute how often an epoch repeats each image on average, (N,), at least 1.

    Args:
        objects: Objects of all images.
        num_images: Number of images, N.
        num_classes: Number of classes, K.
        threshold: Share of the images below which a class is rare.

    Source: Gupta et al. 2019, LVIS (arXiv:1908.03195), appendix B.3.
    """
    pairs = np.unique(np.stack([objects.image, objects.labels]), axis=1)
    share = np.bincount(pairs[1], minlength=num_classes) / num_images
    with np.errstate(divide="ignore"):
        # LVIS's rule (arXiv:1908.03195, section 5.4). An image counts by its rarest class.
        by_class = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[0], by_class[pairs[1]])
    return factors
