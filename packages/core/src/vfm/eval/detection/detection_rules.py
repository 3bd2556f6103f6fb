"""Decide by the rules of COCO and LVIS which detections count, and match them with the objects.

LVIS labels each image for some classes only. Detections of other classes are dropped, and wrong detections of a class
whose instances are not all labelled are ignored. IoU of boxes and masks is computed by faster-coco-eval.

Sources: the COCO API; Gupta et al. 2019, LVIS (arXiv:1908.03195); Dave et al. 2021 (arXiv:2102.01066) for `lvis_fixed`.
"""

# D detections and G true objects of one image and class, A ranges of area, T thresholds, N detections of a class

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from vfm.data.annotated.masks import as_rle, mask_area
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.tables import ObjectArrays
from vfm.eval.detection.detections import Detections
from vfm.statistics.matching import Pairs, match_pairs, ranks
from vfm.statistics.precision_recall import ClassRows

Rule = Literal["coco", "lvis", "lvis_fixed"]
Shape = Literal["boxes", "masks"]
# In pixels, COCO's.
AREAS: dict[str, tuple[float, float]] = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
MAX_DETS: dict[Rule, int] = {"coco": 100, "lvis": 300, "lvis_fixed": 10_000}
"""Limit of detections per image and class (COCO), per image (LVIS), or per class in the whole dataset (fixed)."""


@dataclass(frozen=True)
class GroundTruth:
    """The true instances of a dataset, and for each image the classes that were labelled."""

    source: AnnotatedSource
    objects: ObjectArrays
    num_classes: int
    rule: Rule
    order_of_images: NDArray[np.int64]  # position of each image in the order of the ids
    agnostic: bool = False
    negatives: list[set[int]] = field(default_factory=list)  # by image
    not_exhaustive: list[set[int]] = field(default_factory=list)

    @classmethod
    def of(cls, source: AnnotatedSource, rule: Rule, *, agnostic: bool = False) -> GroundTruth:
        """Collect the ground truth of a dataset.

        Args:
            source: Annotated images.
            rule: Rule of matching.
            agnostic: Treat all classes as one.
        """
        things = np.array(source.dataset.things, dtype=bool)
        objects = source.tables.all
        objects = objects[things[objects.labels]]
        if agnostic:
            objects = replace(objects, labels=np.zeros_like(objects.labels))
        order = np.argsort(np.argsort(source.image_ids, kind="stable"), kind="stable")
        negatives = list(map(set, source.tables.column("negatives")))
        not_exhaustive = list(map(set, source.tables.column("not_exhaustive")))
        num_classes = 1 if agnostic else len(things)
        return cls(source, objects, num_classes, rule, order, agnostic, negatives, not_exhaustive)


def select(detections: Detections, truth: GroundTruth, max_dets: int) -> Detections:
    """Select the detections that count.

    They are within the limit and, for LVIS, of classes that the image is labelled for. The limit comes first, as in
    lvis-api.

    Args:
        detections: Detections of all images.
        truth: Objects of all images.
        max_dets: Largest number of detections in an image.
    """
    groups: dict[Rule, NDArray[np.int64]] = {"lvis": detections.image, "lvis_fixed": detections.labels}
    if truth.rule in groups:
        detections = detections[np.sort(_best(detections.scores, groups[truth.rule], max_dets))]
    if truth.agnostic:
        detections = replace(detections, labels=np.zeros_like(detections.labels))
    elif truth.rule != "coco":
        present = set(zip(truth.objects.image.tolist(), truth.objects.labels.tolist(), strict=True))
        pairs = zip(detections.image.tolist(), detections.labels.tolist(), strict=True)
        is_labelled = [pair in present or pair[1] in truth.negatives[pair[0]] for pair in pairs]
        detections = detections[np.array(is_labelled, dtype=bool)]
    return detections


def match_all(detections: Detections, truth: GroundTruth, shape: Shape, max_dets: int) -> Iterator[ClassRows]:
    """Match detections with objects, and yield the rows of each class in the order of the labels.

    Args:
        detections: Detections in all images.
        truth: The true instances of the dataset.
        shape: Whether to compare boxes or masks.
        max_dets: Limit of detections, counted by the rule (`MAX_DETS`).
    """
    detections = select(detections, truth, max_dets)
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    areas = _areas(detections, truth.source.sizes, shape)
    groups = detections.labels * len(truth.source.sizes) + detections.image
    rank = ranks(groups)
    if truth.rule == "coco":
        kept = rank < max_dets
    else:
        kept = areas > 0  # lvis-api selects annotations by an area above 0, so others are not even wrong
    # By class and falling score. Equal scores keep the order of the images' ids, as in COCO's tools.
    order = np.lexsort((rank, truth.order_of_images[detections.image], -detections.scores, detections.labels))
    order = order[kept[order]]
    detections = detections[order]
    true, ignored, skipped = _match(detections, areas[order], groups[order], truth, shape)
    rank = ranks(groups[order])
    object_rows = rows_by_key(truth.objects.labels)
    nothing = np.empty(0, dtype=np.int64)
    ends = np.searchsorted(detections.labels, np.arange(truth.num_classes + 1))
    for label in range(truth.num_classes):
        rows = slice(ends[label], ends[label + 1])
        objects = object_rows.get(label, nothing)
        yield ClassRows(
            detections.image[rows],
            true[..., rows],
            ignored[..., rows],
            rank[rows],
            truth.objects.image[objects],
            ~skipped[:, objects],
        )


def _match(
    detections: Detections, areas: NDArray[np.float64], groups: NDArray[np.int64], truth: GroundTruth, shape: Shape
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Match detections, by class and falling score, with the objects of their image and class.

    Returns:
        Whether each detection is right and whether it is ignored, (A, T, N), and whether an object is skipped, (A, P).
    """
    objects = truth.objects
    low, high = np.array(list(AREAS.values())).T[:, :, None]  # (A, 1) each
    skipped = (objects.crowd | objects.ignored) | (objects.areas < low) | (objects.areas > high)  # (A, P)
    # Unmatched detections outside a range of areas are ignored in it, neither right nor wrong.
    out_of_range = (areas < low) | (areas > high)  # (A, N)
    if truth.rule != "coco":
        # LVIS: in these images not all objects of the class are labelled, so an unmatched detection may be right.
        pairs = zip(detections.image.tolist(), detections.labels.tolist(), strict=True)
        out_of_range |= np.array([label in truth.not_exhaustive[image] for image, label in pairs], dtype=bool)
    match = match_pairs(_pairs(detections, groups, truth, shape), skipped, objects.crowd)
    matched = match >= 0
    by_area = np.arange(len(AREAS))[:, None, None]
    # Padded by a column for -1, the match of detections without one.
    of_skipped = matched & np.pad(skipped, ((0, 0), (0, 1)))[by_area, match]
    ignored = of_skipped | (~matched & out_of_range[:, None, :])
    return matched & ~ignored, ignored, skipped


def _pairs(detections: Detections, groups: NDArray[np.int64], truth: GroundTruth, shape: Shape) -> Pairs:
    """List the pairs of a detection and an object of the same image and class, with their IoUs."""
    objects = truth.objects
    groups_of_objects = objects.labels * len(truth.source.sizes) + objects.image
    order = np.argsort(groups_of_objects, kind="stable")
    first = np.searchsorted(groups_of_objects[order], groups, "left")
    counts = np.searchsorted(groups_of_objects[order], groups, "right") - first
    starts = np.cumsum(counts) - counts
    detection = np.repeat(np.arange(len(groups)), counts)
    object_of_pair = order[np.arange(len(detection)) + np.repeat(first - starts, counts)]
    if shape == "boxes":
        crowd = objects.crowd[object_of_pair]
        ious = box_ious(detections.boxes[detection], objects.boxes[object_of_pair], crowd)
        return Pairs(groups, detection, object_of_pair, ious)
    ious = np.zeros(len(detection))
    for rows in rows_by_key(groups).values():
        of_group = object_of_pair[starts[rows[0]] + np.arange(counts[rows[0]])]
        width, height = truth.source.sizes[int(detections.image[rows[0]])]
        table = ious_of(detections[rows], objects[of_group], shape, height, width)
        ious[starts[rows, None] + np.arange(len(of_group))] = table
    return Pairs(groups, detection, object_of_pair, ious)


def box_ious(boxes: NDArray[np.float64], others: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the IoU of two boxes each, (P,), or the share of the first box inside a crowd, as COCO's tools do.

    Args:
        boxes: Left, top, right, bottom, (P, 4).
        others: As `boxes`.
        crowd: Whether the other box is a crowd, (P,).
    """
    # From sides, as COCO's boxes have them, so that the last bit is the same.
    sides = boxes[:, 2:] - boxes[:, :2]
    other_sides = others[:, 2:] - others[:, :2]
    ends = np.minimum(boxes[:, :2] + sides, others[:, :2] + other_sides)
    common = (ends - np.maximum(boxes[:, :2], others[:, :2])).clip(0)
    overlap = common[:, 0] * common[:, 1]
    areas = sides[:, 0] * sides[:, 1]
    other_areas = other_sides[:, 0] * other_sides[:, 1]
    union = np.where(crowd, areas, areas + other_areas - overlap)
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0), dtype=np.float64)


def ious_of(
    detections: Detections | ObjectArrays, objects: ObjectArrays, shape: Shape, height: int, width: int
) -> NDArray[np.float64]:
    """Compute the IoU of each detection with each object.

    For a crowd, it is the share of the detection inside.

    Args:
        detections: D detections of an image.
        objects: G objects of the image.
        shape: Boxes or masks.
        height: Height of the image.
        width: Width of the image.

    Returns:
        (D, G).
    """
    if not len(detections) or not len(objects):
        return np.zeros((len(detections), len(objects)))
    detected = _coco_shapes(detections.boxes, detections.counts, shape, height, width)
    true = _coco_shapes(objects.boxes, objects.counts, shape, height, width)
    ious = coco_mask.iou(detected, true, objects.crowd.astype(int).tolist())
    return np.asarray(ious, dtype=np.float64).reshape(len(detections), len(objects))


def _coco_shapes(
    boxes: NDArray[np.float64], counts: Sequence[bytes | None], shape: Shape, height: int, width: int
) -> object:
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    if shape == "boxes":
        return corners
    filled_boxes = coco_mask.frPyObjects(corners, height, width) if None in counts else []
    masks = []
    for row, mask in enumerate(counts):
        # An object without a mask is compared by its filled box.
        masks.append(as_rle(filled_boxes[row]["counts"] if mask is None else mask, height, width))
    return masks


def _areas(detections: Detections, sizes: Sequence[tuple[int, int]], shape: Shape) -> NDArray[np.float64]:
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    areas = np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float64)
    if shape == "masks":
        for row, counts in enumerate(detections.counts):
            if counts is not None:
                width, height = sizes[int(detections.image[row])]
                areas[row] = mask_area(counts, height, width)
    return areas


def rows_by_key(keys: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Group the row numbers by key, in ascending order."""
    order = np.argsort(keys, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []
    return {int(keys[part[0]]): part for part in parts}


def _best(scores: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Select the rows with the `count` best scores of each group, the first ones among equal scores."""
    order = np.argsort(-scores, kind="stable")
    return np.asarray(order[ranks(groups[order]) < count], dtype=np.int64)
