"""Features judged without text: a linear probe and nearest neighbours, on any image encoder."""

# N training images, Q test images, C classes, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vfm.artifacts import LabeledDataset
from vfm.eval.encode import ImageEncoder, Reading
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.judges.answers import Answered, encode_answered, hardest, judged
from vfm.eval.knn import knn_votes
from vfm.eval.linear_probe import PENALTIES, fit_linear_probe, split_validation
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
    known, known_answers = encode_answered(ctx, models, train, reading)
    known_labels = known_answers.numpy()
    fitted, held_out = split_validation(known_labels, validation_fraction, seed)
    test, answers = encode_answered(ctx, models, data, reading)
    train_hash = data_hash(train, known.digests)
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
        judgements[name] = judged(scores, answers, test.keys, data, "lp_", details)
        curves.append(Series(name=name, x=[p for p, _ in tried], y=[100 * a for _, a in tried]))
    ctx.panel(hardest(data, answers, judgements))
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
    train: Answered,
    data: Answered,
    *,
    k: int = 20,
    temperature: float = 0.07,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge features by their nearest training images, which vote for their class or for each of their labels.

    Returns:
        The hash of the test data and a judgement for each model.
    """
    known, known_labels = encode_answered(ctx, models, train, reading)
    test, answers = encode_answered(ctx, models, data, reading)
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
        judgements[name] = judged(votes.numpy(), answers, test.keys, data, "knn_", details)
    ctx.panel(hardest(data, answers, judgements))
    return data_hash(data, test.digests), judgements
