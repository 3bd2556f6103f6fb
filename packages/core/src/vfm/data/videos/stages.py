"""Configurations of `data.videos` and `data.video_union`, the stages that index videos with classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vfm.interfaces import Artifact, Ref, Stage, VideoDataset
from vfm.storage.path_patterns import expand_paths

VideoFormat = Literal[
    "auto", "class_folders", "frame_folders", "webdataset", "kinetics", "list", "ucf", "hmdb", "something"
]


class Videos(Stage):
    """Index your own videos with one class each.

    They are in class folders, in tars, in folders of frames, or in the layout of Kinetics, UCF, HMDB or
    Something-Something. Every video is opened once to store its number of frames, rate, rotation and key frames. The
    videos stay in place.
    """

    version: ClassVar[int] = 2  # since frames are counted where packets do not have their times
    kind: Literal["data.videos"] = "data.videos"
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="folder of the videos, or tars with `mp4` and `cls` or `json`. Set it with --set 'NAME.path=...'"
    )
    annotations: str | None = Field(
        None,
        description="Kinetics' csv, a text file with `path label`, UCF's trainlist01.txt (with classInd.txt next to"
        " it), HMDB's folder of CLASS_test_split1.txt, or Something-Something's JSON (with labels.json next to it)",
    )
    format: VideoFormat = Field("auto", description="layout of the files (auto: by their names)")
    split: str = Field("train", description="HMDB: train1 to train3, or test1 to test3 (train: train1)")
    label_key: str = Field("cls", description="tars: location of the class, `cls` or `json.FIELD`")
    class_names: list[str] = Field(
        default=[], description="class names in the order of the labels (default: the dataset's, sorted)"
    )
    names: str | None = Field(
        None, description="file of class names: one in each line, or csv with `id,name` in its first line"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of videos that cannot be used")

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.data.videos.indexing:index_videos"
    checks: ClassVar[str] = "vfm.data.videos.indexing:check_videos"

    def sources(self) -> Iterable[str]:
        """List the files behind `path`, the annotations and the names."""
        return [*expand_paths(self.path), *filter(None, (self.annotations, self.names))]


class VideoUnion(Stage):
    """Join video datasets into one with all their classes, such as Kinetics-722 of Kinetics-400, -600 and -700."""

    kind: Literal["data.video_union"] = "data.video_union"
    data: list[Ref[VideoDataset]] = Field(
        min_length=1, description="datasets to join. Classes with the same name become one class"
    )
    without: list[Ref[VideoDataset]] = Field(
        [], description="test datasets. Videos with one of their ids are left out, and so are repeated ids"
    )

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.data.videos.union:join_videos"
    checks: ClassVar[str] = "vfm.data.videos.union:check_union"
