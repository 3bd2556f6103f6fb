"""The work of `vfm predict` and `vfm embed` with a classifier of videos. Imports torch and PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfm.artifacts import FACTS_FILE, VideoClassifier, VideoDataset
from vfm.cli.command import show
from vfm.cli.inputs import full_name, open_device
from vfm.config import UserError
from vfm.data import BadSample
from vfm.data.videos import Media, VideoSample, VideoSource
from vfm.data.videos.indexing import index_videos
from vfm.data.videos.media import frame_folder
from vfm.data.videos.probing import probe
from vfm.eval import ReadSettings, check_finite, open_writer
from vfm.eval.video_views import TestViews
from vfm.eval.videos import embed_videos, load_video_predictor, predict_videos
from vfm.stage import Context
from vfm.stages.videos import Videos


def predict(model: str, paths: Sequence[Path], device: str, top: int) -> None:
    """Print the most probable classes of video files, or of folders of frames.

    Raises:
        UserError: a file does not exist, or is no video.
    """
    samples = [_read_video(path) for path in paths]
    classifier = load_video_predictor(VideoClassifier.load(model), open_device(device))
    scores = predict_videos(classifier, samples, TestViews())
    check_finite(scores, model, list(map(str, paths)))
    for path, row in zip(paths, scores.tolist(), strict=True):
        show(str(path))
        for value, name in sorted(zip(row, classifier.class_names, strict=True), reverse=True)[:top]:
            show(f"  {value:6.3f}  {name}")


def embed(ctx: Context, model: str, data: str, out: Path, device: str, batch_size: int, max_bad_fraction: float) -> str:
    """Write the embedding of each video, the mean over its clips, and return a line about them.

    Raises:
        UserError: the videos cannot be found, too many of them cannot be read, or the file has another suffix.
    """
    writer = open_writer(out, full_name(model, None))
    source, names = _open_videos(ctx, data)
    classifier = load_video_predictor(VideoClassifier.load(model), open_device(device))
    with writer:
        reading, views = ReadSettings(batch_size, max_bad_fraction), TestViews(num_crops=1)
        bad = embed_videos(ctx, source, names, classifier, writer, reading, views)
    skipped = f"; skipped: {', '.join(f'{count} {reason}' for reason, count in bad.items())}" if bad else ""
    return f"{out}: {len(source) - bad.total():,} embeddings{skipped}"


def _read_video(path: Path) -> VideoSample:
    if not path.exists():
        raise UserError(f"{path}: no such video")
    media = frame_folder(str(path)) if path.is_dir() else Media(str(path))
    try:
        return VideoSample(path.stem, path.stem, b"", media=media, facts=probe(media))
    except BadSample as bad:
        raise UserError(f"{path}: {bad.reason.replace('_', ' ')}") from None


def _open_videos(ctx: Context, data: str) -> tuple[VideoSource, list[str]]:
    """Return the videos of an artifact, or of a path as `data.videos` takes it, and their class names."""
    if (Path(data) / FACTS_FILE).is_file():
        dataset = VideoDataset.load(data)
    else:
        dataset = index_videos(Videos(kind="data.videos", name="videos", path=data, max_bad_fraction=1.0), ctx)
    return VideoSource.of(dataset), dataset.class_names
