"""Semantic segmentation from frozen patch tokens, by a linear layer or by nearest neighbours.

Each image is squashed to the encoder's square, so that all encoders, including CLIP vision towers, see it in the same
way. Labels are compared at their full resolution. Without training images the evaluation is cross-validated: each image
is predicted by a head that was not trained on it.
"""

# N images, D width, h and w rows and columns of patches

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vfm.base import UserError
from vfm.data.annotated import AnnotatedSource
from vfm.eval.dense.annotated_images import each_result
from vfm.eval.dense.checks import check_semantic
from vfm.eval.dense.dense_panels import NUM_IMAGES, add_map_panels
from vfm.eval.dense.stages import DenseProbe
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import ITEM_BYTES, data_hash, item_digest, warn_of_overlap
from vfm.eval.encode.row_files import RowFile, row_files
from vfm.eval.segmentation.patch_head import HeadTraining, predict_map, train_head
from vfm.eval.segmentation.patch_neighbours import remember_patches
from vfm.eval.segmentation.segmentation import check_labelled, iou_panel, pixel_table
from vfm.interfaces import AnnotatedImages, Context, Evaluated, ModelResult
from vfm.models import ClipModel, eval_mode, vision_features
from vfm.statistics.mean_iou import MeanIou, count_pixels
from vfm.train import resolve_device
from vfm.train.parallel.sharing import leave_to_first, without_values

LABELS_IN_MEMORY = 500  # label maps, some 100 MB
VALIDATION = 5  # every fifth training image is used to choose the learning rate


@dataclass(frozen=True)
class DenseImages:
    """The usable images of a dataset, and a file of their features for each model."""

    source: AnnotatedSource
    numbers: list[int]  # in the dataset
    digests: list[bytes]
    image_digests: list[bytes]
    files: dict[str, RowFile]  # by model
    labels: LabelReader

    @property
    def keys(self) -> list[str]:
        """Keys of the images."""
        return [self.source.keys[number] for number in self.numbers]

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """Features by model, fp16 (N, D, h, w)."""
        return {name: file.rows() for name, file in self.files.items()}


class LabelReader(Sequence[NDArray[np.integer]]):
    """The semantic maps of some images, (H, W) each, read on demand. The latest ones are cached in memory."""

    def __init__(self, source: AnnotatedSource, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self._read = lru_cache(LABELS_IN_MEMORY)(source.semantic)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        return self._read(self.numbers[row])


@dataclass(frozen=True)
class TrainedProbe:
    """The heads trained for one model.

    There is one in total or one per fold, with the images that each predicts.
    """

    heads: list[tuple[nn.Module, NDArray[np.int64]]]
    lrs: list[float]

    def predict(self, name: str, images: DenseImages, device: torch.device, row: int) -> NDArray[np.int64]:
        """Predict the class of each pixel of an image."""
        head = next(head for head, rows in self.heads if row in rows)
        size: tuple[int, int] = images.labels[row].shape
        return predict_map(head, images.maps[name], row, size, device)


def evaluate_dense_probe(config: DenseProbe, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
    """Evaluate encoders by mean IoU with `train_head` or `remember_patches`, all on the same images.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        encoders: Models by name.

    Raises:
        UserError: If an encoder has no patch tokens, the classes of `train` differ, there are too few images, or no
            pixel is labelled.
    """
    data = ctx.load(config.data)
    train = ctx.load(config.train) if config.train else None
    check_semantic(config, data, train)
    device = resolve_device(config.runtime)
    num_classes = len(data.class_names)
    with ExitStack() as opened:
        test = _read(config, ctx, encoders, data, "test", device, opened)
        if train:
            known = _read(config, ctx, encoders, train, "train", device, opened)
        else:
            known = None
        leave_to_first()
        if known:
            warn_of_overlap(ctx, known.image_digests, test.image_digests)
        results: dict[str, ModelResult] = {}
        scored: dict[str, MeanIou] = {}
        predict: dict[str, Callable[[int], NDArray[np.int64]]] = {}
        for name in encoders:
            probe = _train(config, name, test, known, num_classes, device)
            predict[name] = partial(probe.predict, name, test, device)
            counts = []
            for row, labels in enumerate(test.labels):
                counts.append(count_pixels(labels, predict[name](row), num_classes))
                ctx.progress(len(results) * len(test.labels) + row + 1, len(encoders) * len(test.labels), "predictions")
            scored[name] = MeanIou.of(counts)
            check_labelled(config.data, scored[name])
            scores = scored[name].scores("dense_knn_" if config.neighbours else "dense_", config.num_resamples)
            if config.neighbours:
                method = config.neighbours.model_dump()
            else:
                method = {"lrs": probe.lrs, "steps": config.steps}
            details = {"resize_mode": "squash", "layers": config.layers, **method}
            results[name] = ModelResult(scores, {"images": pixel_table(test.keys, scored[name])}, details)
        ctx.panel(iou_panel(data.class_names, scored))
        _add_worst(ctx, test, next(iter(scored.values())), predict)
        return Evaluated(data_hash(data, test.digests), results)


def folds_of(count: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Assign each image to a fold, (count,), with sizes that differ by at most one."""
    fold = np.arange(count) % folds
    return np.asarray(np.random.default_rng(seed).permutation(fold))


def _train(
    config: DenseProbe,
    name: str,
    test: DenseImages,
    known: DenseImages | None,
    num_classes: int,
    device: torch.device,
) -> TrainedProbe:
    probe = TrainedProbe([], [])
    for rows, tested, images in _splits(config, test, known):
        if config.neighbours:
            maps = images.maps[name]
            labels = images.labels
            settings = config.neighbours
            memory = remember_patches(maps, labels, rows, num_classes, settings, config.seed, device)
            probe.heads.append((memory, tested))
            continue
        lr = _best_rate(config, images, name, rows, num_classes, device)
        head = train_head(images.maps[name], images.labels, rows, num_classes, lr, _training(config), device)
        check_finite(head.classify.weight.detach(), f"{name}: the probe's weights", test.source.dataset.class_names)
        probe.heads.append((head, tested))
        probe.lrs.append(lr)
    return probe


def _add_worst(
    ctx: Context, test: DenseImages, counts: MeanIou, predict: Mapping[str, Callable[[int], NDArray[np.int64]]]
) -> None:
    shares = counts.right.sum(axis=1) / np.maximum(1, counts.true.sum(axis=1))
    worst = np.argsort(shares, kind="stable")[:NUM_IMAGES].tolist()
    maps = {}
    for name, predict_row in predict.items():
        maps[name] = [predict_row(row) for row in worst]
    numbers = [test.numbers[row] for row in worst]
    truth = [test.labels[row] for row in worst]
    add_map_panels(ctx, test.source, numbers, truth, maps)


def _splits(
    config: DenseProbe, test: DenseImages, known: DenseImages | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], DenseImages]]:
    """Yield the rows to train on, the rows to predict, and the images that the training rows refer to."""
    everything = np.arange(len(test.numbers))
    if known:
        yield np.arange(len(known.numbers)), everything, known
        return
    if len(everything) < config.folds:
        raise UserError(
            f"{config.data}: {len(everything)} usable images, expected at least one for each of {config.folds} folds"
        )
    fold = folds_of(len(everything), config.folds, config.seed)
    for number in range(config.folds):
        yield everything[fold != number], everything[fold == number], test


def _best_rate(
    config: DenseProbe, images: DenseImages, name: str, rows: NDArray[np.int64], num_classes: int, device: torch.device
) -> float:
    """Choose the learning rate with the best mean IoU on a part of the training images, the smallest among equals."""
    if len(config.lrs) == 1:
        return config.lrs[0]
    held_out = rows[::VALIDATION]
    rest = np.setdiff1d(rows, rows[::VALIDATION])
    if not len(rest):
        where = config.train or config.data
        raise UserError(f"{where}: expected two or more training images to choose among lrs, got {len(rows)}")
    quality = {}
    for lr in sorted(config.lrs):
        head = train_head(images.maps[name], images.labels, rest, num_classes, lr, _training(config), device)
        counts = []
        for row in held_out.tolist():
            truth = images.labels[row]
            predicted = predict_map(head, images.maps[name], row, truth.shape, device)
            counts.append(count_pixels(truth, predicted, num_classes))
        quality[lr] = MeanIou.of(counts).scores()[0].value
    return max(quality, key=quality.__getitem__)


def _training(config: DenseProbe) -> HeadTraining:
    return HeadTraining(config.steps, config.train_batch_size, config.weight_decay, config.seed)


def _read(
    config: DenseProbe,
    ctx: Context,
    encoders: Mapping[str, Any],
    data: AnnotatedImages,
    part: str,
    device: torch.device,
    opened: ExitStack,
) -> DenseImages:
    """Read all images once, and write the features of each model to a file that `opened` removes."""
    source = AnnotatedSource(data)
    numbers: list[int] = []
    digests: list[bytes] = []
    files = opened.enter_context(row_files(ctx.work / f"maps-{part}", encoders))

    def read(number: int) -> tuple[Image.Image, bytes]:
        image = source.image(number)
        pixels = image.tobytes()
        of_item = item_digest(source.keys[number], [pixels, source.semantic(number).tobytes()])
        return image, of_item + hashlib.sha256(pixels).digest()

    def encode(batch: list[tuple[int, tuple[Image.Image, bytes]]]) -> list[_EncodedImage]:
        images = [image for _, (image, _) in batch]
        keys = [source.keys[number] for number, _ in batch]
        maps = {}
        for name, encoder in encoders.items():
            maps[name] = encode_maps(encoder, images, config.layers, config.image_size, device).half().cpu()
            check_finite(maps[name], f"{name}: features in half precision", keys)
        encoded_images = []
        for row, (_, (_, digest)) in enumerate(batch):
            # Clones, so that the maps of the whole batch can be freed.
            maps_of_image = {name: rows[row : row + 1].clone() for name, rows in maps.items()}
            encoded_images.append(_EncodedImage(digest, maps_of_image))
        return encoded_images

    encoded = each_result(
        source, config.reading, ctx, read, encode, batch_size=config.micro_batch_size,
        for_others=_EncodedImage.without_values, at_once=1,
    )  # fmt: skip
    for number, image in encoded:
        numbers.append(number)
        digests.append(image.digest)
        for name, row in image.maps.items():
            files[name].append(row)
    of_items = [digest[:ITEM_BYTES] for digest in digests]
    of_images = [digest[ITEM_BYTES:] for digest in digests]
    return DenseImages(source, numbers, of_items, of_images, files, LabelReader(source, numbers))


@dataclass(frozen=True)
class _EncodedImage:
    """The hash of an image, and its features by model, fp16 (1, D, h, w)."""

    digest: bytes
    maps: dict[str, Tensor]

    def without_values(self) -> _EncodedImage:
        """Drop the values for processes that do not write features."""
        return replace(self, maps={name: without_values(row) for name, row in self.maps.items()})


@torch.inference_mode()
def encode_maps(
    encoder: Any, images: list[Image.Image], layers: list[int], image_size: int | None, device: torch.device
) -> Tensor:
    """Compute the normalised patch tokens of some blocks as maps, concatenated along D.

    Args:
        encoder: A `ClipModel` or `PooledVision`.
        images: Images of any size. They are squashed.
        layers: Indices of the blocks.
        image_size: Side of the square in pixels. Default: the encoder's image size.
        device: Device of the encoder.

    Returns:
        (N, D, h, w).

    Raises:
        UserError: If the encoder has no patch tokens, no such block, or cannot take images of this size.
    """
    side = image_size or encoder.preprocess.image_size
    settings = {"image_size": side, "resize_mode": "squash", "crop_pct": 1.0}
    pixels = encoder.preprocess.model_copy(update=settings).inputs(images, device)
    model = encoder if isinstance(encoder, ClipModel) else encoder.module
    with eval_mode(encoder.module):
        return torch.cat([tokens.maps for tokens in vision_features(model, pixels, layers=layers)], dim=1)
