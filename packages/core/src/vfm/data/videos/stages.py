"""Configurations of the stages that make videos with classes: `data.videos`, `data.video_union`, `shapes.videos`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vfm.interfaces import Artifact, Ref, Stage, VideoDataset
from vfm.storage.files import expand_paths

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


STAGES: tuple[type[Stage], ...] = (Videos, VideoUnion)
