"""Classes and embeddings of videos, by a video classifier. Imports torch and PyAV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vfm.api.inputs import local_file, open_device
from vfm.api.paths import PATHS, AnyPath, as_place
from vfm.base import UserError
from vfm.data import BadSample
from vfm.data.videos import Media, VideoSample, VideoSource
from vfm.data.videos.indexing import index_videos
from vfm.data.videos.media import frame_folder
from vfm.data.videos.probing import probe
from vfm.data.videos.stages import Videos
from vfm.eval import check_finite
from vfm.eval.encode.embeddings import Writer
from vfm.eval.video.video_views import TestViews
from vfm.eval.video.videos import embed_videos, load_video_predictor, predict_videos
from vfm.interfaces import FACTS_FILE, Artifact, Context, VideoClassifier, VideoDataset
from vfm.plugin import ReadSettings


def predict(model: VideoClassifier, paths: Sequence[AnyPath], device: str) -> tuple[list[str], Tensor]:
    """Classify video files, or folders of frames.

    Args:
        model: The classifier.
        paths: Files or folders.
        device: Device to run on.

    Returns:
        Class names, and their probabilities for each video, (B, K).

    Raises:
        UserError: If a file does not exist, is not a video, or cannot be decoded.
    """
    samples = list(map(_read_video, paths))
    classifier = load_video_predictor(model, open_device(device))
    try:
        scores = predict_videos(classifier, samples, TestViews())
    except BadSample as bad:  # in a part of the video that was not read when opening it
        raise UserError(f"{bad.where}: {bad.reason.replace('_', ' ')}") from None
    check_finite(scores, str(model.path), list(map(str, paths)))
    return list(classifier.class_names), torch.as_tensor(scores)


def embed(
    ctx: Context,
    model: VideoClassifier,
    data: AnyPath | Artifact,
    writer: Writer,
    device: str,
    reading: ReadSettings,
) -> tuple[int, Counter[str]]:
    """Write the embedding of each video, the mean over its clips.

    Args:
        ctx: Context of the call.
        model: The classifier.
        data: Dataset of videos, or a path to one.
        writer: File to write to.
        device: Device to run on.
        reading: How the videos are read.

    Returns:
        Number of videos, and of bad ones by reason.

    Raises:
        UserError: If the videos do not exist, or too many of them cannot be read.
    """
    source, names = _open_videos(ctx, as_place(data))
    classifier = load_video_predictor(model, open_device(device))
    with writer:
        bad = embed_videos(ctx, source, names, classifier, writer, reading, TestViews(num_crops=1))
    return len(source) - bad.total(), bad


def _read_video(path: AnyPath) -> VideoSample:
    if not isinstance(path, PATHS):
        raise UserError(f"expected the path of a video, got a {type(path).__name__}")
    file = local_file(path)
    if not file.exists():
        raise UserError(f"{file}: no such video")
    media = frame_folder(str(file)) if file.is_dir() else Media(str(file))
    try:
        return VideoSample(file.stem, file.stem, b"", media=media, facts=probe(media))
    except BadSample as bad:
        raise UserError(f"{file}: {bad.reason.replace('_', ' ')}") from None


def _open_videos(ctx: Context, data: str) -> tuple[VideoSource, list[str]]:
    """Open the videos of an artifact, or of a path in any format of `data.videos`, and look up their class names."""
    if (Path(data) / FACTS_FILE).is_file():
        dataset = VideoDataset.load(data)
    else:
        dataset = index_videos(Videos(kind="data.videos", name="videos", path=data, max_bad_fraction=1.0), ctx)
    return VideoSource.of(dataset), dataset.class_names
