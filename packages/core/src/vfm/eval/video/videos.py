"""The work of `eval.video`, and embeddings and predictions for videos."""

# N videos, V views of each, C classes

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data import BadSample
from vfm.data.videos import VideoSource
from vfm.eval.base import ReadSettings
from vfm.eval.classify.classify import columns_of
from vfm.eval.encode.bad_samples import BadSamples
from vfm.eval.encode.embeddings import Writer
from vfm.eval.encode.evaluation import report_models
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, item_digest
from vfm.eval.encode.ranking import hits_at, label_ranks
from vfm.eval.video.predictor import VideoPredictor
from vfm.eval.video.stages import VideoEvaluation
from vfm.eval.video.video_panels import add_class_panel, add_strips
from vfm.eval.video.video_views import TestViews, read_ahead, softmax
from vfm.interfaces import Context, Evaluated, ModelResult, Report, VideoClassifier, VideoDataset, find_predictor
from vfm.statistics import Accuracy
from vfm.train.parallel.sharing import leave_to_first, of_all, own_share


@dataclass
class _Scored:
    """The probabilities that a model gives to the views of all videos, (V, C) each."""

    columns: list[int]
    views: list[NDArray[np.float64]] = field(default_factory=list)


def evaluate_videos(config: VideoEvaluation, ctx: Context) -> Report:
    """Load the models, evaluate them on the same views of the same videos, and write the report.

    Several processes share the videos, and only rank 0 writes.

    Raises:
        LeftToFirst: In all processes but the first.
    """

    def load(name: str, checkpoint: VideoClassifier, device: torch.device) -> VideoPredictor:
        return load_video_predictor(checkpoint, device)

    return report_models(config, ctx, load, partial(evaluate_predictors, config, ctx))


def load_video_predictor(checkpoint: VideoClassifier, device: torch.device) -> VideoPredictor:
    """Load a model with the function named in its artifact.

    Raises:
        UserError: If no installed stage declares that function.
    """
    predictor: VideoPredictor = find_predictor(checkpoint)(checkpoint, device)
    return predictor


def evaluate_predictors(config: VideoEvaluation, ctx: Context, models: Mapping[str, VideoPredictor]) -> Evaluated:
    """Evaluate loaded models on the same views of the same videos.

    Raises:
        UserError: If a model lacks a class of the dataset, or too many videos cannot be read.
    """
    data: VideoDataset = ctx.load(config.data)
    source = VideoSource.of(data)
    names = data.class_names
    views = TestViews(config.num_clips, config.num_crops, config.order, config.seed, config.clip_rule)
    check_clip_rule(config, models)
    scored = {}
    for name, model in models.items():
        scored[name] = _Scored(columns_of(model.class_names, len(model.class_names), names, name))
    numbers: list[int] = []
    bad = BadSamples(ctx)
    at_once = max(1, config.micro_batch_size // (views.num_clips * views.num_crops))
    share = list(own_share(range(len(source))))

    def classify(name: str, number: int, clips: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = _in_micro_batches(models[name], clips, config.micro_batch_size)
        check_finite(logits, name, [source.where(number)] * len(logits))
        return softmax(logits[:, scored[name].columns])

    def classified() -> Iterator[tuple[int, BadSample | list[NDArray[np.float64]]]]:
        for batch in read_ahead(source, share, list(models.values()), views, config.reading.threads, at_once):
            for number, clips in batch:
                if isinstance(clips, BadSample):
                    yield number, clips
                else:
                    yield number, list(map(classify, models, repeat(number), clips))

    # Each video is a batch for the sharing between processes.
    for number, outcome in of_all(classified(), for_others=_without_views):
        if isinstance(outcome, BadSample):
            bad.skip(outcome)
        else:
            for of_model, probabilities in zip(scored.values(), outcome, strict=True):
                of_model.views.append(probabilities)
            numbers.append(number)
        ctx.progress(len(numbers) + bad.counts.total(), len(source), "videos")
    bad.check(config.reading, len(source), "videos")
    leave_to_first()
    labels = np.array(source.labels)[numbers]
    rows = source.table.select(["key", "label", "num_frames"]).to_pylist()
    keys = []
    digests = []
    for number in numbers:
        keys.append(rows[number]["key"])
        digests.append(item_digest(rows[number], []))
    results = {name: _result(of_model, labels, keys, data, views) for name, of_model in scored.items()}
    if numbers and config.has_something_to_evaluate:
        add_class_panel(ctx, data, labels, results)
        add_strips(ctx, source, numbers, labels, data, *list(results.items())[-1])
    return Evaluated(data_hash(data, digests), results)


def check_clip_rule(config: VideoEvaluation, models: Mapping[str, VideoPredictor]) -> None:
    """Check that a rule for dense clips has an effect on every model.

    Raises:
        UserError: If a model takes a frame from each part of a video.
    """
    for name, model in models.items():
        if config.clip_rule != "parts" and model.sampling.kind != "dense":
            raise UserError(
                f"clip_rule: {config.clip_rule} is for models with dense clips, but {name} has sampling:"
                f" {model.sampling.kind}"
            )


def _without_views(
    classified: tuple[int, BadSample | list[NDArray[np.float64]]],
) -> tuple[int, BadSample | list[NDArray[np.float64]]]:
    """Drop the probabilities. The other processes need them neither for counts nor for progress."""
    number, outcome = classified
    if isinstance(outcome, BadSample):
        return number, outcome
    return number, [views[:0] for views in outcome]


def _in_micro_batches(model: VideoPredictor, clips: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    return np.concatenate([model.logits(clips[start : start + size]) for start in range(0, len(clips), size)])


def _result(
    scored: _Scored, labels: NDArray[np.int64], keys: list[str], data: VideoDataset, views: TestViews
) -> ModelResult:
    by_view = np.stack(scored.views)  # (N, V, C)
    mean = by_view.mean(axis=1)
    ranks = label_ranks(torch.from_numpy(mean), torch.from_numpy(labels))
    classes = len(data.class_names)
    predicted = mean.argmax(axis=1)
    right = hits_at(ranks, 1)
    scores = [Accuracy("acc1", right, chance=1 / classes)]
    if classes > 5:
        scores.append(Accuracy("acc5", hits_at(ranks, 5), chance=5 / classes))
    scores.append(Accuracy("mean_per_class_recall", right, classes=labels, chance=1 / classes))
    count = by_view.shape[1]
    if count > 1:
        each = (by_view.argmax(axis=2) == labels[:, None]).ravel()
        videos = np.repeat(np.arange(len(labels)), count)
        scores.append(Accuracy("acc1/single_view", each, groups=videos, chance=1 / classes))
    scores += _reversal_scores(mean, predicted, labels, data)
    columns = {"key": keys, "label": labels, "predicted": predicted, "rank": ranks, "probability": mean.max(axis=1)}
    details = {
        "num_clips": views.num_clips, "num_crops": views.num_crops, "order": views.order, "clip_rule": views.clip_rule
    }  # fmt: skip
    return ModelResult(scores, {"videos": columns}, details)


def _reversal_scores(
    mean: NDArray[np.float64], predicted: NDArray[np.int64], labels: NDArray[np.int64], data: VideoDataset
) -> list[Accuracy]:
    """Compute how often a class beats its time reversal, and how often the time reversal is predicted."""
    names = data.class_names
    # Class of the time reversal of each class, -1 if it has none.
    partner = np.array([names.index(data.reversals[name]) if name in data.reversals else -1 for name in names])
    paired = partner[labels] >= 0
    if not paired.any():
        return []
    rows = np.flatnonzero(paired)
    mine = labels[paired]
    other = partner[labels[paired]]
    return [
        Accuracy("pair_accuracy", mean[rows, mine] > mean[rows, other], chance=0.5),
        Accuracy("acc1/reversed_class", predicted[paired] == other, chance=1 / len(names)),
    ]


def embed_videos(
    ctx: Context, source: VideoSource, class_names: list[str], model: VideoPredictor, writer: Writer,
    reading: ReadSettings, views: TestViews,
) -> Counter[str]:  # fmt: skip
    """Write a unit vector for each video, the mean over its views.

    Args:
        ctx: Context of the call.
        source: The videos.
        class_names: Names of the classes.
        model: The classifier.
        writer: File to write to.
        reading: Batch size and tolerance of bad samples.
        views: Views of a video.

    Returns:
        Number of bad videos by reason.

    Raises:
        UserError: If too many videos cannot be read, or an embedding is not finite.
    """
    bad = BadSamples(ctx)
    done = 0
    for batch in read_ahead(source, range(len(source)), [model], views, reading.threads, reading.batch_size):
        keys = []
        texts = []
        vectors = []
        for number, clips in batch:
            if isinstance(clips, BadSample):
                bad.skip(clips)
                continue
            mean = model.features(clips[0]).mean(axis=0)
            keys.append(source[number].key)
            texts.append(class_names[source.labels[number]] if class_names else None)
            # Opposite views of a video may cancel, and a zero mean has no direction.
            length = float(np.linalg.norm(mean))
            vectors.append(mean / max(length, 1e-12))
        if keys:
            embeddings = np.stack(vectors).astype(np.float32)
            check_finite(embeddings, "the model", keys)
            writer.write(keys, texts, embeddings)
        done += len(batch)
        ctx.progress(done, len(source), "videos")
    bad.check(reading, len(source), "videos")
    return bad.counts


def predict_videos(model: VideoPredictor, samples: list[Any], views: TestViews) -> NDArray[np.float64]:
    """Compute the probability of each class for videos, averaged over their views.

    Args:
        model: The classifier.
        samples: The videos.
        views: Views of a video.

    Returns:
        (N, C).

    Raises:
        BadSample: A video cannot be read.
    """
    probabilities = []
    for number, sample in enumerate(samples):
        logits = model.logits(views.read(sample, number, model))
        probabilities.append(softmax(logits).mean(axis=0))
    return np.stack(probabilities)
