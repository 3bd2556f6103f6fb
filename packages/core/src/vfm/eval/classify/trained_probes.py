"""Train probes by gradient descent, linear on pooled features or attentive on patch tokens."""

# N images, C classes

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vfm.base import UserError
from vfm.eval.base import ReadSettings
from vfm.eval.classify.attentive_probe import AttentiveHead, PatchTokens
from vfm.eval.classify.checks import check_same_classes
from vfm.eval.classify.classification import ClassDataset, encode_with_targets, result_from_scores
from vfm.eval.classify.classification_panels import add_class_panels
from vfm.eval.classify.stages import AttentiveProbe
from vfm.eval.classify.sweep import LRS, NormedLinearHead, ProbeSchedule, Rows, head_scores, split_validation, sweep
from vfm.eval.encode.features import Encoded
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, warn_of_overlap
from vfm.eval.encode.row_files import row_files
from vfm.interfaces import Context, Evaluated, LinesPanel, Series
from vfm.models import ImageEncoder
from vfm.train import resolve_device
from vfm.train.parallel.sharing import leave_to_first, writes_files


@dataclass(frozen=True)
class ProbeSettings:
    """The kind of probe and how it is trained.

    Attributes:
        validation_fraction: Fraction of the training images held out to choose the learning rate, taken from each class
            if each image has one class.
        max_cache_gib: Largest temporary file of patch tokens, per model and dataset, in GiB (attentive).
    """

    probe: Literal["linear", "attentive"]
    schedule: ProbeSchedule
    validation_fraction: float
    max_cache_gib: float = math.inf


def evaluate_attentive_probe(config: AttentiveProbe, ctx: Context, encoders: Mapping[str, ImageEncoder]) -> Evaluated:
    """Evaluate patch tokens with an attentive probe."""
    train = ctx.load(config.train)
    data = ctx.load(config.data)
    check_same_classes(config, train, data)
    lrs = tuple(config.lrs or LRS["adamw"])
    schedule = ProbeSchedule("adamw", lrs, config.epochs, config.train_batch_size, config.seed)
    settings = ProbeSettings("attentive", schedule, config.validation_fraction, config.max_cache_gib)
    device = resolve_device(config.runtime)
    return score_trained_probe(ctx, encoders, train, data, settings, device=device, reading=config.reading)


def score_trained_probe(
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    train: ClassDataset,
    data: ClassDataset,
    settings: ProbeSettings,
    *,
    device: torch.device,
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Evaluated:
    """Score features by a probe, with the same split into training and validation for all models.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        train: Training images.
        data: Test images.
        settings: Kind and training of the probe.
        device: Device of the training.
        reading: Batch size and tolerance of bad samples.

    Raises:
        UserError: If no image can be held out, a linear probe has only one training image, the tokens need more disk
            space than `max_cache_gib`, or a score is not finite.
    """
    with ExitStack() as opened:
        known, known_targets, features = _encode(ctx, encoders, train, settings, "train", reading, opened)
        test, targets, test_features = _encode(ctx, encoders, data, settings, "test", reading, opened)
        # Features come from all processes, the heads are trained in the first.
        leave_to_first()
        warn_of_overlap(ctx, known.image_digests, test.image_digests)
        split = _split(known_targets, settings)
        results = {}
        curves = []
        for name in encoders:
            width = features[name].shape[-1]
            head = NormedLinearHead if settings.probe == "linear" else AttentiveHead
            # The learning rate is chosen on a part of the training images, never on the test images.
            make = partial(head, width, len(data.class_names))
            swept = sweep(make, features[name], known_targets, split, settings.schedule, device)
            scores = head_scores(swept.head, test_features[name], np.arange(len(targets)))
            check_finite(scores, f"{name}: the probe's scores", test.keys)
            details = {
                **asdict(settings.schedule),
                "lr": swept.lr,
                "validation": {str(lr): score for lr, score in swept.validation.items()},
                "train_sha256": data_hash(train, known.digests),
            }
            prefix = "lp_" if settings.probe == "linear" else "attn_"
            results[name] = result_from_scores(scores, targets, test.keys, data, prefix, details)
            lrs, qualities = zip(*sorted(swept.validation.items()), strict=True)
            curves.append(Series(name=name, x=list(lrs), y=(100 * np.array(qualities)).tolist()))
        add_class_panels(ctx, data, test, targets, results)
        ctx.panel(_chosen_panel(curves, several=targets.ndim > 1))
        return Evaluated(data_hash(data, test.digests), results)


def _encode(
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    data: ClassDataset,
    settings: ProbeSettings,
    part: str,
    reading: ReadSettings,
    opened: ExitStack,
) -> tuple[Encoded, Tensor, dict[str, Tensor]]:
    """Compute the input of the probe.

    It is pooled features, or patch tokens mapped from a file that `opened` removes.
    """
    if settings.probe == "linear":
        images, targets = encode_with_targets(ctx, encoders, data, reading)
        return images, targets, images.features
    tokens = {name: PatchTokens(model, data.num_samples, settings.max_cache_gib) for name, model in encoders.items()}
    # Patch tokens of a dataset are a hundred times its pooled features, so they are on disk and mapped.
    files = opened.enter_context(row_files(ctx.work / f"tokens-{part}", encoders))
    images, targets = encode_with_targets(ctx, tokens, data, reading, files)
    rows = {}
    if writes_files():
        for name, file in files.items():
            rows[name] = file.rows()
    return images, targets, rows


def _split(targets: Tensor, settings: ProbeSettings) -> tuple[Rows, Rows]:
    fraction = settings.validation_fraction
    seed = settings.schedule.seed
    # Several labels cannot all be distributed evenly, so the split treats all images as one class.
    if targets.ndim == 1:
        classes = targets
    else:
        classes = torch.zeros(len(targets), dtype=torch.int64)
    rows, held_out = split_validation(classes.numpy(), fraction, seed)
    if settings.probe == "linear" and len(rows) < 2:  # for batch norm
        raise UserError(f"train: expected two or more images in addition to the held-out ones, got {len(rows)}")
    return rows, held_out


def _chosen_panel(curves: list[Series], *, several: bool) -> LinesPanel:
    return LinesPanel(
        title="Learning rate chosen on validation",
        series=curves,
        x_label="learning rate",
        y_label="mean average precision on validation, %" if several else "% right on validation",
        x_log=True,
    )
