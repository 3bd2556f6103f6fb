"""Configuration of `eval.video`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vfm.base import load_function
from vfm.eval.base import ReadSettings, ResizeMode, values_of
from vfm.interfaces import Context, Evaluation, Ref, Seed, VideoClassifier, VideoDataset


class VideoEvaluation(Evaluation):
    """Evaluate video classifiers by the mean softmax over clips and crops. Intervals are over videos.

    The clips are the same in every run. Their frames can be reversed or shuffled to test how much a model uses order.
    """

    kind: Literal["eval.video"] = "eval.video"
    in_processes: ClassVar[bool] = True
    work: ClassVar[str] = "vfm.eval.video.videos:evaluate_videos"
    checks: ClassVar[str] = "vfm.eval.video.checks:check_video_evaluation"
    task_name: ClassVar[str] = "video_classification"
    resize_mode: ClassVar[ResizeMode | None] = None  # crops of the shorter side

    models: list[Ref[VideoClassifier]] = Field(  # type: ignore[assignment]
        [], description="models to evaluate; omitted in `evaluation.tasks`"
    )
    data: Ref[VideoDataset] = Field(description="videos to evaluate on; a model must have all of their classes")
    num_clips: int = Field(4, ge=1, description="number of clips per video, at fixed positions")
    clip_rule: Literal["parts", "videomae", "mmaction", "mmaction_dense"] = Field(
        "parts",
        description="where dense clips start; parts: in the middle of equal parts of all possible starts; videomae and"
        " mmaction: from the first to the last start, as VideoMAE's test and mmaction2's SampleFrames; mmaction_dense:"
        " as its DenseSampleFrames with a sample_range of num_frames * stride",
    )
    num_crops: Literal[1, 3] = Field(3, description="1: centre crop; 3: crops along the longer side")
    order: Literal["forward", "reversed", "shuffled"] = Field(
        "forward", description="order of the frames in each clip, as a control"
    )
    micro_batch_size: int = Field(8, ge=1, description="clips per forward pass")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of videos that cannot be read")
    seed: Seed = Field(0, description="seed of the shuffled frames")

    @property
    def reading(self) -> ReadSettings:
        """Batch size, tolerated bad videos and threads for reading `data`."""
        return ReadSettings(self.micro_batch_size, self.max_bad_fraction, max(1, self.runtime.num_workers))

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """Compute the value of each metric for a model in training."""
        evaluated = load_function("vfm.eval.video.videos:evaluate_predictors")(self, ctx, {"model": encoder})
        return values_of(evaluated.results["model"].scores)
