"""The rules of COCO and LVIS: which detections count, how many of an image, and how they are matched.

LVIS labels each image for some classes only: detections of other classes are dropped, and wrong ones of a class whose
instances are not all labelled are ignored. IoU of boxes and masks is computed by faster-coco-eval.

Sources: the COCO API; Gupta et al. 2019, LVIS (arXiv:1908.03195); Dave et al. 2021 (arXiv:2102.01066) for `lvis_fixed`.
"""

# D detections and G true objects of one image and class, A ranges of area, T thresholds, N detections of a class

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from vfm.data.annotated.masks import as_rle, mask_area
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.tables import ObjectArrays
from vfm.eval.detection.detections import Detections
from vfm.statistics.matching import THRESHOLDS, match_detections
from vfm.statistics.precision_recall import ClassRows

Rule = Literal["coco", "lvis", "lvis_fixed"]
Shape = Literal["boxes", "masks"]
AREAS: dict[str, tuple[float, float]] = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
MAX_DETS: dict[Rule, int] = {"coco": 100, "lvis": 300, "lvis_fixed": 10_000}
"""COCO: of each class of an image; LVIS: of an image; fixed: of each class of the whole set."""


@dataclass(frozen=True)
class Truth:
    """What an evaluation compares with: the instances of a dataset, and what is known of each image's labels."""

    source: AnnotatedSource
    objects: ObjectArrays
    num_classes: int
    rule: Rule
    order_of_images: NDArray[np.int64]  # by their ids in the source
    agnostic: bool = False
    negatives: list[set[int]] = field(default_factory=list)  # by image
    not_exhaustive: list[set[int]] = field(default_factory=list)

    @classmethod
    def of(cls, source: AnnotatedSource, rule: Rule, *, agnostic: bool = False) -> Truth:
        """Return the truth of a dataset; with `agnostic` all classes are one."""
        things = np.array(source.dataset.things, dtype=bool)
        objects = source.tables.all
        objects = objects[things[objects.labels]]
        if agnostic:
            labels = np.zeros_like(objects.labels)
            objects = ObjectArrays(
                objects.image, labels, objects.boxes, objects.counts, objects.areas, objects.crowd, objects.ignored
            )
        order = np.argsort(np.argsort(source.image_ids, kind="stable"), kind="stable")
        lists = ([set(one) for one in source.tables.column(name)] for name in ("negatives", "not_exhaustive"))
        return cls(source, objects, 1 if agnostic else len(things), rule, order, agnostic, *lists)


def select(detections: Detections, truth: Truth, max_dets: int) -> Detections:
    """Return the detections that count: by the rule's limit, and for LVIS of classes that the image is labelled for.

    The limit comes first, as in lvis-api.
    """
    groups: dict[Rule, NDArray[np.int64]] = {"lvis": detections.image, "lvis_fixed": detections.labels}
    if truth.rule in groups:
        detections = detections[np.sort(_best(detections.scores, groups[truth.rule], max_dets))]
    if truth.agnostic:
        detections = Detections(
            detections.image,
            np.zeros_like(detections.labels),
            detections.scores,
            detections.boxes,
            detections.counts,
            detections.maskness,
        )
    elif truth.rule != "coco":
        present = set(zip(truth.objects.image.tolist(), truth.objects.labels.tolist(), strict=True))
        pairs = zip(detections.image.tolist(), detections.labels.tolist(), strict=True)
        kept = [pair in present or pair[1] in truth.negatives[pair[0]] for pair in pairs]
        detections = detections[np.array(kept, dtype=bool)]
    return detections


def match_all(detections: Detections, truth: Truth, shape: Shape, max_dets: int) -> Iterator[ClassRows]:
    """Yield the rows of each class, in the order of the labels.

    Args:
        detections: of all images.
        truth: the dataset's instances.
        shape: compare boxes or masks.
        max_dets: largest number of detections, counted as the rule does (`MAX_DETS`).
    """
    detections = select(detections, truth, max_dets)
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    areas = _areas(detections, truth.source.sizes, shape)
    limit = max_dets if truth.rule == "coco" else len(detections) + 1
    found, true = group_places(detections.labels), group_places(truth.objects.labels)
    nothing = np.empty(0, dtype=np.int64)
    for label in range(truth.num_classes):
        rows, objects = found.get(label, nothing), truth.objects[true.get(label, nothing)]
        rows = rows[_ranks(detections.image[rows]) < limit]
        yield _match_class(detections[rows], areas[rows], objects, label, truth, shape)


def _match_class(
    found: Detections, areas: NDArray[np.float64], objects: ObjectArrays, label: int, truth: Truth, shape: Shape
) -> ClassRows:
    """Match the detections of one class, by falling score, with its objects, image by image."""
    low, high = np.array(list(AREAS.values())).T[:, :, None]  # (A, 1) each
    skipped = (objects.crowd | objects.ignored) | (objects.areas < low) | (objects.areas > high)  # (A, P)
    beside = (areas < low) | (areas > high)  # (A, N)
    if truth.rule != "coco":
        beside |= np.array([label in truth.not_exhaustive[image] for image in found.image.tolist()], dtype=bool)
    match = np.full((len(AREAS), len(THRESHOLDS), len(found)), -1, dtype=np.int64)
    of_found, of_objects = group_places(found.image), group_places(objects.image)
    for image in of_found.keys() & of_objects.keys():
        rows, places = of_found[image], of_objects[image]
        width, height = truth.source.sizes[image]
        ious = ious_of(found[rows], objects[places], shape, height, width)
        one = match_detections(ious, skipped[:, places], objects.crowd[places])
        match[:, :, rows] = np.where(one >= 0, places[one], -1)
    matched = match >= 0
    by_area = np.arange(len(AREAS))[:, None, None]
    of_skipped = matched & np.pad(skipped, ((0, 0), (0, 1)))[by_area, match]
    ignored = of_skipped | (~matched & beside[:, None, :])
    rank = _ranks(found.image)
    # Equal scores keep the order of the images' ids, as in COCO's tools.
    order = np.lexsort((rank, truth.order_of_images[found.image], -found.scores))
    true = (matched & ~ignored)[..., order]
    return ClassRows(found.image[order], true, ignored[..., order], rank[order], objects.image, ~skipped)


def ious_of(
    found: Detections | ObjectArrays, objects: ObjectArrays, shape: Shape, height: int, width: int
) -> NDArray[np.float64]:
    """Return the IoU of each detection with each object, (D, G); with a crowd, the part of the detection inside it."""
    if not len(found) or not len(objects):
        return np.zeros((len(found), len(objects)))
    sides = (_sides(one.boxes, one.counts, shape, height, width) for one in (found, objects))
    ious = coco_mask.iou(*sides, objects.crowd.astype(int).tolist())
    return np.asarray(ious, dtype=np.float64).reshape(len(found), len(objects))


def _sides(boxes: NDArray[np.float64], counts: Sequence[bytes | None], shape: Shape, height: int, width: int) -> object:
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    if shape == "boxes":
        return corners
    filled = coco_mask.frPyObjects(corners, height, width) if None in counts else []
    # An object without a mask has that of its box.
    given = [filled[place]["counts"] if one is None else one for place, one in enumerate(counts)]
    return [as_rle(one, height, width) for one in given]


def _areas(found: Detections, sizes: Sequence[tuple[int, int]], shape: Shape) -> NDArray[np.float64]:
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    areas = np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float64)
    for place, counts in enumerate(found.counts if shape == "masks" else ()):
        if counts is not None:
            width, height = sizes[int(found.image[place])]
            areas[place] = mask_area(counts, height, width)
    return areas


def group_places(keys: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return the places of each key, in their order."""
    order = np.argsort(keys, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []
    return {int(keys[part[0]]): part for part in parts}


def _ranks(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of equal keys before each, (N,)."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1) != 0)
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return rank


def _best(scores: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the places of the `count` best of each group; the first of equal scores."""
    order = np.argsort(-scores, kind="stable")
    return np.asarray(order[_ranks(groups[order]) < count], dtype=np.int64)
