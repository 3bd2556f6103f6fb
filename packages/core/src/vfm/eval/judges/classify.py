"""A classifier's own head on a labelled set, whose classes are all of the head's or some of them."""

# N images, C classes of the data set

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from vfm.artifacts import LabeledDataset
from vfm.config import UserError, did_you_mean
from vfm.eval.encode import PooledVision, Reading
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.answers import encode_answered, hardest, judged
from vfm.models.class_names import class_names_of
from vfm.stage import Context


@dataclass(frozen=True)
class HeadOutputs:
    """Takes an encoder's place where a data set is read: gives what the head says of some classes, not features."""

    encoder: PooledVision
    columns: list[int]

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Logits, float32 (N, C) on the CPU."""
        return self.encoder.logits(images, batch_size)[:, self.columns]


def judge_classify(
    ctx: Context,
    models: Mapping[str, Any],
    data: LabeledDataset,
    *,
    class_names: Sequence[str] | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge classifiers; of a head's outputs those for the data set's classes alone can be answers.

    So ImageNet-A, -R and the like, which have 200 of a head's 1,000 classes, are judged as their authors do.

    Returns:
        The hash of the data and a judgement for each model.

    Raises:
        UserError: a model has no head, or the data set's classes are not among its head's.
    """
    heads = {name: _outputs(name, model, data.class_names, class_names) for name, model in models.items()}
    images, answers = encode_answered(ctx, heads, data, reading)
    judgements = {
        name: judged(images.features[name].numpy(), answers, images.keys, data, "", {"head": heads[name].columns})
        for name in models
    }
    ctx.panel(hardest(data, answers, judgements))
    return data_hash(data, images.digests), judgements


def _outputs(name: str, model: Any, wanted: Sequence[str], given: Sequence[str] | None) -> HeadOutputs:
    num_classes = int(getattr(model.module, "num_classes", 0)) if isinstance(model, PooledVision) else 0
    if not num_classes:
        raise UserError(f"{name}: it has no classification head; eval.linear_probe and eval.knn judge features")
    return HeadOutputs(model, columns_of(list(given or class_names_of(model.module)), num_classes, wanted, name))


def columns_of(names: Sequence[str], num_classes: int, wanted: Sequence[str], where: str) -> list[int]:
    """The head's outputs for the wanted classes, by name; without names the classes are the outputs, in order.

    Raises:
        UserError: a class is not among the names, or names or classes are not as many as outputs; `where` is ours.
    """
    if not names:
        if len(wanted) != num_classes:
            raise UserError(
                f"{where}: its head has {num_classes} outputs without names, the data have {len(wanted)} classes; "
                "give class_names, of the head's outputs in their order"
            )
        return list(range(num_classes))
    if len(names) != num_classes:
        raise UserError(f"{where}: {len(names)} class_names for a head of {num_classes} outputs")
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    if missing := [name for name in wanted if name not in places]:
        raise UserError(f"{where}: its head knows no class {missing[0]!r}{did_you_mean(missing[0], names)}")
    return [places[name] for name in wanted]
