"""Classification by the head of a model, on a labelled dataset with all of its classes or a subset."""

# N images, C classes of the dataset

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from vfm.base import UserError, did_you_mean
from vfm.eval.class_names import check_class_names
from vfm.eval.classify.classification import encode_with_targets, result_from_scores
from vfm.eval.classify.classification_panels import add_class_panels
from vfm.eval.classify.stages import Classify
from vfm.eval.encode.hashes import data_hash
from vfm.interfaces import Context, Evaluated
from vfm.models import PooledVision, class_names_of
from vfm.train.parallel.sharing import leave_to_first


@dataclass(frozen=True)
class HeadOutputs:
    """An encoder whose features are the head's logits for some classes."""

    encoder: PooledVision
    columns: list[int]

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Compute logits, float32 (N, C) on the CPU."""
        # Other outputs of the head are dropped here, as they could only be wrong.
        return self.encoder.logits(images, batch_size)[:, self.columns]


def evaluate_classify(config: Classify, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
    """Evaluate classifiers. Only the classes of the dataset can be predicted.

    ImageNet-A and -R, for example, have 200 of a head's 1,000 classes, and their authors evaluate them in this way.

    Raises:
        UserError: If a model has no head, or its head lacks a class of the dataset.
    """
    data = ctx.load(config.data)
    check_class_names(data.class_names, str(config.data))
    heads = {name: _outputs(name, model, data.class_names, config.class_names) for name, model in encoders.items()}
    images, targets = encode_with_targets(ctx, heads, data, config.reading)
    leave_to_first()
    results = {}
    for name, head in heads.items():
        scores = images.features[name].numpy()
        details = {"head": head.columns}
        results[name] = result_from_scores(scores, targets, images.keys, data, "", details)
    add_class_panels(ctx, data, images, targets, results)
    return Evaluated(data_hash(data, images.digests), results)


def _outputs(name: str, model: Any, classes: Sequence[str], output_names: Sequence[str] | None) -> HeadOutputs:
    if isinstance(model, PooledVision):
        num_classes = int(getattr(model.module, "num_classes", 0))
    else:
        num_classes = 0
    if not num_classes:
        raise UserError(
            f"{name}: expected a model with a classification head; eval.linear_probe and eval.knn evaluate features"
        )
    output_names = list(output_names or class_names_of(model.module))
    return HeadOutputs(model, columns_of(output_names, num_classes, classes, name))


def columns_of(names: Sequence[str], num_classes: int, classes: Sequence[str], where: str) -> list[int]:
    """Look up the index of each class among the outputs of a head, by name. Without names the outputs are the classes.

    Args:
        names: Names of the head's outputs, in their order, or empty.
        num_classes: Number of the head's outputs.
        classes: Names of the classes to look up.
        where: The model's name, for errors.

    Raises:
        UserError: If a class is not among the names, or the numbers of names, classes and outputs do not match.
    """
    if not names:
        if len(classes) != num_classes:
            raise UserError(
                f"{where}: its head has {num_classes} outputs without names, the dataset {len(classes)} classes; "
                "give class_names, those of the head's outputs in their order"
            )
        return list(range(num_classes))
    if len(names) != num_classes:
        raise UserError(f"{where}: expected class_names for {num_classes} outputs of its head, got {len(names)}")
    column_of: dict[str, int] = {}
    for column, name in enumerate(names):
        column_of.setdefault(name, column)  # the first output of a name counts
    columns = []
    for name in classes:
        if name not in column_of:
            raise UserError(f"{where}: its head has no class {name!r}{did_you_mean(name, names)}")
        columns.append(column_of[name])
    return columns
