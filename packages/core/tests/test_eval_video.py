"""`eval.video`: the softmax mean over views, the video as unit, controls of the order, and the commands for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cli_world import run_here
from vfm.base import UserError
from vfm.data.videos import ClipSampling, VideoSource
from vfm.data.videos.stages import Videos
from vfm.eval.video.stages import VideoEvaluation
from vfm.eval.video.video_views import TestViews, read_ahead, softmax
from vfm.eval.video.videos import evaluate_predictors
from vfm.interfaces import Context, Preflight, Report, VideoDataset
from video_files import encode, grey_frames, write
from video_predictor import CLASSES, Greys, make_classifier


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    """Two videos that get brighter, two that get darker, a still one, and a brighter one in the wrong class."""
    root = tmp_path_factory.mktemp("videos")
    rising = grey_frames(16)
    for name, frames in {
        "brighter/a": rising, "brighter/b": rising[:9], "darker/c": rising[::-1], "darker/d": rising[8::-1],
        "still/e": rising[[5] * 8], "still/f": rising,
    }.items():  # fmt: skip
        write(root / "data" / f"{name}.mp4", encode(np.ascontiguousarray(frames)))
    folder = root / "artifact"
    folder.mkdir()
    made = Videos(kind="data.videos", name="videos", path=str(root / "data")).run(Context("videos", folder, folder, {}))
    assert isinstance(made, VideoDataset)
    record = made.model_copy(update={"reversals": {"brighter": "darker", "darker": "brighter"}})
    return VideoDataset.create(folder, **record.model_dump())


def evaluate(videos: VideoDataset, folder: Path, models: dict[str, dict[str, Any]], **fields: Any) -> Report:
    inputs = {name: make_classifier(folder / name, **more).path for name, more in models.items()}
    config = VideoEvaluation(kind="eval.video", name="ruler", models=list(models), data="videos", **fields)  # type: ignore[arg-type]
    inputs["videos"] = videos.path
    config.preflight(Preflight({}, inputs))
    (folder / "out").mkdir()
    made = config.run(Context("ruler", folder / "out", folder, inputs))
    assert isinstance(made, Report)
    return made


def values(report: Report) -> dict[str, float]:
    return {metric.name: round(metric.value, 4) for metric in report.metrics}


def test_scores_are_those_of_the_softmax_mean_over_views(videos: VideoDataset, tmp_path: Path) -> None:
    report = evaluate(videos, tmp_path, {"model": {}}, num_clips=2)
    source, model = VideoSource.of(videos), Greys(CLASSES, ClipSampling(4))
    views = TestViews(2, 3)
    means = [softmax(model.logits(views.read(source[n], n, model))).mean(axis=0) for n in range(len(source))]
    predicted = np.argmax(means, axis=1)
    assert values(report)["acc1"] == round(float((predicted == source.labels).mean()), 4) == round(5 / 6, 4)
    assert values(report) == {
        "acc1": 0.8333, "mean_per_class_recall": 0.8333, "acc1/single_view": 0.8333, "pair_accuracy": 1.0,
        "acc1/reversed_class": 0.0,
    }  # fmt: skip
    metric = next(one for one in report.metrics if one.name == "acc1/single_view")
    assert metric.n == 6  # videos, not 36 views
    table = pq.read_table(report.path / "predictions/videos.parquet")
    assert table["predicted"].to_pylist() == predicted.tolist()
    assert table["probability"].to_pylist() == pytest.approx(np.max(means, axis=1))
    assert {"right-00.jpg", "wrong-00.jpg"} <= {file.name for file in (report.path / "panels").iterdir()}


def test_reversed_videos_swap_the_classes_and_shuffled_ones_are_shuffled_alike(
    videos: VideoDataset, tmp_path: Path
) -> None:
    for name in ("reversed", "again", "shuffled"):
        (tmp_path / name).mkdir()
    turned = values(evaluate(videos, tmp_path / "reversed", {"model": {}}, order="reversed", num_clips=1))
    assert (turned["pair_accuracy"], turned["acc1/reversed_class"]) == (0.0, 1.0)
    one, two = (
        evaluate(videos, tmp_path / name, {"model": {}}, order="shuffled", num_crops=1)
        for name in ("again", "shuffled")
    )
    files = [(one.path / "predictions/videos.parquet").read_bytes() for one in (one, two)]
    assert files[0] == files[1]


def test_models_are_compared_on_the_same_videos(videos: VideoDataset, tmp_path: Path) -> None:
    report = evaluate(
        videos, tmp_path, {"first": {}, "second": {"names": ["darker", "brighter", "still"]}}, num_clips=1
    )
    first = report.comparisons[0]
    assert (first.metric, first.model, first.baseline, first.test) == ("acc1", "second", "first", "exact McNemar")
    assert first.difference < 0
    hashes = {
        name: (report.path / f"results/videos_{name}_video_classification.json").read_text() for name in ("first",)
    }
    assert '"num_crops": 3' in hashes["first"]


def test_a_model_in_training_is_evaluated_by_the_same_function(videos: VideoDataset, tmp_path: Path) -> None:
    config = VideoEvaluation(kind="eval.video", name="video", data="videos")  # type: ignore[arg-type]
    ctx = Context("train", tmp_path, tmp_path, {"videos": videos.path})
    scores = config.scores(ctx, Greys(CLASSES, ClipSampling(4)))
    assert scores["acc1"] == pytest.approx(5 / 6)
    assert not list(tmp_path.iterdir())  # a training draws no panels for it


def test_threads_read_the_same_views_in_order(videos: VideoDataset) -> None:
    source, model = VideoSource.of(videos), Greys(CLASSES, ClipSampling(4))
    found = []
    for threads, at_once in ((1, 1), (3, 4)):
        batches = list(read_ahead(source, range(len(source)), [model], TestViews(), threads, at_once))
        found.append([(number, clips[0].tobytes()) for batch in batches for number, clips in batch])  # type: ignore[index]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model", "message"),
    [({"names": ["brighter", "dark", "still"]}, "no class 'darker' of videos"), ({"nan": True}, "not finite|NaN|nan")],
)
def test_a_wrong_model_is_one_line(model: dict[str, Any], message: str, videos: VideoDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(videos, tmp_path, {"model": model})


def test_videos_that_vanish_are_counted(videos: VideoDataset, tmp_path: Path) -> None:
    write(tmp_path / "data/brighter/a.mp4", encode(grey_frames(8)))
    write(tmp_path / "data/darker/b.mp4", encode(grey_frames(8)))
    folder = tmp_path / "artifact"
    folder.mkdir()
    config = Videos(kind="data.videos", name="v", path=str(tmp_path / "data"), class_names=CLASSES)
    config.run(Context("v", folder, folder, {}))
    (tmp_path / "data/darker/b.mp4").unlink()
    ctx = Context("train", tmp_path, tmp_path, {"v": folder})
    ruler = VideoEvaluation(kind="eval.video", name="video", data="v", max_bad_fraction=0.5)  # type: ignore[arg-type]
    evaluated = evaluate_predictors(ruler, ctx, {"m": Greys(CLASSES, ClipSampling(4))})
    assert len(evaluated.results["m"].predictions["videos"]["key"]) == 1
    assert ctx.bad == {"unreadable_video": 1}
    strict = VideoEvaluation(kind="eval.video", name="video", data="v")  # type: ignore[arg-type]
    line = r"1 of 2 videos cannot be used .*: 1 unreadable_video; the first is .*b\.mp4 \(unreadable_video\)"
    with pytest.raises(UserError, match=line):
        evaluate_predictors(strict, ctx, {"m": Greys(CLASSES, ClipSampling(4))})
    model, out = str(make_classifier(tmp_path / "model").path), str(tmp_path / "out.parquet")
    done = run_here("embed", model, str(folder), "--out", out)
    assert done.code == 2
    assert "b.mp4 (unreadable_video)" in done.err


def test_predict_and_embed_take_videos(videos: VideoDataset, tmp_path: Path) -> None:
    model = str(make_classifier(tmp_path / "model").path)
    clip = str(write(tmp_path / "clip.mp4", encode(grey_frames(16))))
    done = run_here("predict", model, clip, "--top", "2")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split()[1] == "brighter"
    assert len(done.out.splitlines()) == 3
    done = run_here("embed", model, str(videos.path), "--out", str(tmp_path / "out.parquet"))
    assert (done.code, "6 embeddings" in done.out) == (0, True), done.err
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["text"].to_pylist()[0] == "brighter"
    np.testing.assert_allclose(np.linalg.norm(np.stack(table["embedding"].to_pylist()), axis=1), 1, rtol=1e-5)
    for number, frame in enumerate(grey_frames(8)):
        Image.fromarray(frame).save(write(tmp_path / f"frames/{number:05d}.png", b""))
    write(tmp_path / "frames/00005.png", b"no picture")
    for words, message in (
        (["predict", model, str(tmp_path / "frames")], "00005.png: unreadable"),
        (["predict", model, str(tmp_path / "none.mp4")], "no such video"),
        (["predict", model, str(write(tmp_path / "x.mp4", b"x"))], "unreadable video"),
        (["predict", model, clip, "--classes", "a,b"], "has its own classes"),
    ):
        done = run_here(*words)
        assert done.code == 2
        assert message in done.err


def test_vfm_eval_finds_the_task_of_videos(videos: VideoDataset, tmp_path: Path) -> None:
    model = str(make_classifier(tmp_path / "model").path)
    done = run_here("eval", model, "--data", str(videos.path), "--dry-run")
    assert done.code == 0, done.err
    assert "kind: eval.video" in done.out
    root = str(Path(VideoSource.of(videos)[0].media.path).parents[1])
    done = run_here("eval", model, "--data", f"own={root}", "--dry-run")
    assert done.code == 0, done.err
    assert "kind: data.videos" in done.out
