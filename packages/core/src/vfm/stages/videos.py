"""Configurations of the stages that make videos with classes: `data.videos`, `data.video_union`, `shapes.videos`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Artifact, VideoDataset
from vfm.files import expand_paths
from vfm.shapes.actions import ACTIONS, Action, turning_shapes
from vfm.stage import Ref, Stage
from vfm.stages.shapes import ShapeImages

VideoFormat = Literal[
    "auto", "class_folders", "frame_folders", "webdataset", "kinetics", "list", "ucf", "hmdb", "something"
]


class Videos(Stage):
    """Index your own videos with one class each: class folders, Kinetics, UCF, HMDB, Something-Something, tars, frames.

    Every video is opened once; its number of frames, rate, turn and key frames are stored. The videos stay in place.
    """

    kind: Literal["data.videos"] = "data.videos"
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="folder of the videos, or tars with `mp4` and `cls` or `json`; set it with --set 'NAME.path=...'"
    )
    annotations: str | None = Field(
        None,
        description="Kinetics: the csv; lists: a text file of `path label`; UCF: trainlist01.txt, with classInd.txt"
        " beside it; HMDB: folder of CLASS_test_split1.txt; Something-Something: the json, with labels.json beside it",
    )
    format: VideoFormat = Field("auto", description="layout of the files; auto: by their names")
    split: str = Field("train", description="HMDB: train1 to train3, test1 to test3; train: train1")
    label_key: str = Field("cls", description="tars: location of the class, `cls` or `json.FIELD`")
    class_names: list[str] = Field(
        default=[], description="class names in the order of the labels; default: the dataset's, sorted"
    )
    names: str | None = Field(
        None, description="file of class names: one in each line, or csv with `id,name` in its first line"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of videos that cannot be used")

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.data.videos.indexing:index_videos"
    checks: ClassVar[str] = "vfm.data.videos.indexing:check_videos"

    def sources(self) -> Iterable[str]:
        """Return the files behind `path`, the annotations and the names."""
        return [*expand_paths(self.path), *(one for one in (self.annotations, self.names) if one)]


class VideoUnion(Stage):
    """Join video datasets into one with all their classes, such as Kinetics-722 of Kinetics-400, -600 and -700."""

    kind: Literal["data.video_union"] = "data.video_union"
    data: list[Ref[VideoDataset]] = Field(min_length=1, description="datasets; classes of one name become one class")
    without: list[Ref[VideoDataset]] = Field(
        [], description="datasets of tests: videos with one of their ids are left out, and so are repeated ids"
    )

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.data.videos.union:join_videos"
    checks: ClassVar[str] = "vfm.data.videos.union:check_union"


class ShapesVideos(ShapeImages):
    """Draw videos of one moving shape among still ones; each action is the time-reversal of another one.

    Position, angle, size and opacity move along circles, so each frame alone, and any set of frames, is equally likely
    in both actions of a pair: without the order nothing can be right more often than every second time within a pair.
    """

    kind: Literal["shapes.videos"] = "shapes.videos"
    num_samples: int = Field(1000, ge=1, description="videos to draw; the actions take turns")
    num_frames: int = Field(16, ge=4, le=256, description="frames of a video")
    actions: tuple[Action, ...] = Field(ACTIONS, min_length=2, description="the classes, in this order")
    num_still: int = Field(2, ge=0, le=4, description="largest number of still shapes")
    speed: Annotated[float, Field(gt=0, le=4)] = Field(
        0.75, description="part of its circle that the moving shape passes in a video"
    )
    rate: int = Field(8, ge=1, le=120, description="frames in a second of the files")

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.shapes.videos:make_videos"

    @model_validator(mode="after")
    def _possible(self) -> ShapesVideos:
        if len(set(self.actions)) < len(self.actions):
            raise ValueError(f"actions must not repeat one, got {', '.join(self.actions)}")
        if self.world.image_size % 2:
            raise ValueError(f"world.image_size must be even for videos, got {self.world.image_size}")
        if not turning_shapes(self.world.shapes) and {"turn right", "turn left"} & set(self.actions):
            raise ValueError("no shape of this world shows a turn; add one with a direction, such as arrow")
        return self


STAGES: list[type[Stage]] = [Videos, VideoUnion, ShapesVideos]
