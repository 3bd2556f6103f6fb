"""Features judged without text: a linear probe and nearest neighbours, on any image encoder."""

# N training images, Q test images, C classes, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.artifacts import LabeledDataset
from vfm.eval.encode import ImageEncoder, Reading
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.zero_shot import class_verdicts, encode_labeled, hardest_classes, labels_of
from vfm.eval.knn import knn_votes
from vfm.eval.linear_probe import PENALTIES, fit_linear_probe, split_validation
from vfm.eval.ranking import hits_at, label_ranks
from vfm.panels import LinesPanel, Series
from vfm.stage import Context


def judge_linear_probe(
    ctx: Context,
    models: Mapping[str, ImageEncoder],
    train: LabeledDataset,
    data: LabeledDataset,
    *,
    validation_fraction: float = 0.2,
    penalties: Sequence[float] | None = None,
    max_iter: int = 1000,
    seed: int = 0,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge features by logistic regression; the split into training and validation is the same for all models.

    Returns:
        The hash of the test data and a judgement for each model.

    Raises:
        UserError: no class has an image to hold out.
    """
    known = encode_labeled(ctx, models, train, reading)
    known_labels = labels_of(known)
    fitted, held_out = split_validation(known_labels, validation_fraction, seed)
    test = encode_labeled(ctx, models, data, reading)
    labels, train_hash = labels_of(test), data_hash(train, known.digests)
    judgements, curves = {}, []
    for name in models:
        features = known.features[name].numpy()
        probe = fit_linear_probe(
            (features[fitted], known_labels[fitted]),
            (features[held_out], known_labels[held_out]),
            penalties=tuple(penalties or PENALTIES),
            max_iter=max_iter,
        )
        if not probe.converged:
            ctx.warn(f"{name}: L-BFGS did not converge in {max_iter} steps; raise max_iter")
        scores = probe.scores(test.features[name].numpy(), len(data.class_names))
        tried = sorted(probe.validation_accuracy.items())
        details = {
            "penalty": probe.penalty,
            "validation_accuracy": {str(p): a for p, a in tried},
            "train_sha256": train_hash,
        }
        judgements[name] = _judgement(scores, labels, test.keys, "lp_", details)
        curves.append(Series(name=name, x=[p for p, _ in tried], y=[100 * a for _, a in tried]))
    ctx.panel(hardest_classes(data.class_names, labels, judgements))
    ctx.panel(
        LinesPanel(
            title="Penalty chosen on validation",
            series=curves,
            x_label="L2 penalty",
            y_label="% right on validation",
            x_log=True,
        )
    )
    return data_hash(data, test.digests), judgements


def judge_knn(
    ctx: Context,
    models: Mapping[str, ImageEncoder],
    train: LabeledDataset,
    data: LabeledDataset,
    *,
    k: int = 20,
    temperature: float = 0.07,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge features by their nearest training images.

    Returns:
        The hash of the test data and a judgement for each model.
    """
    known, test = encode_labeled(ctx, models, train, reading), encode_labeled(ctx, models, data, reading)
    known_labels, labels = torch.from_numpy(labels_of(known)), labels_of(test)
    details = {"k": k, "temperature": temperature, "train_sha256": data_hash(train, known.digests)}
    judgements = {}
    for name in models:
        votes = knn_votes(
            known.features[name],
            known_labels,
            test.features[name],
            num_classes=len(data.class_names),
            k=k,
            temperature=temperature,
        )
        judgements[name] = _judgement(votes.numpy(), labels, test.keys, "knn_", details)
    ctx.panel(hardest_classes(data.class_names, labels, judgements))
    return data_hash(data, test.digests), judgements


def _judgement(
    scores: NDArray[np.floating], labels: NDArray[np.int64], keys: list[str], prefix: str, details: Mapping[str, object]
) -> Judgement:
    """From each class's score for each image, (Q, C)."""
    ranks = label_ranks(torch.from_numpy(scores), torch.from_numpy(labels))
    verdicts = class_verdicts(hits_at(ranks, 1), hits_at(ranks, 5), labels, scores.shape[1], prefix=prefix)
    columns = {"key": keys, "label": labels, "predicted": scores.argmax(axis=1), "rank": ranks}
    return Judgement(verdicts, {"images": columns}, details)
