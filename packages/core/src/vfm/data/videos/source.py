"""Random access to the videos of a `VideoDataset`, through `videos.parquet` with a row for each usable video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.data.samples.order import Epochs, SameEpochs, SampleOrder
from vfm.data.samples.sample import uid_of
from vfm.data.videos.media import Media, VideoFacts, VideoSample
from vfm.interfaces import VideoDataset
from vfm.storage.store_files import read_parquet, reading

VIDEOS_FILE = "videos.parquet"
VIDEOS_PER_WINDOW = 64  # videos that count as a shard, because orders shuffle windows of shards
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "video_id": pa.string(),
        "label": pa.int32(),
        "path": pa.string(),
        "start": pa.int64(),
        "size": pa.int64(),
        "num_frames": pa.int32(),
        "rate": pa.float64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "rotation": pa.int16(),
        "variable_rate": pa.bool_(),
        "key_frames": pa.list_(pa.int32()),
        "key_times": pa.list_(pa.int64()),
        "step": pa.int64(),
    }
)
FACTS = ("num_frames", "rate", "width", "height", "rotation", "variable_rate", "step")


def write_videos(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows. Paths inside the artifact, or inside another artifact of its store, become relative to it."""
    root = directory.resolve()
    stored = []
    for row in rows:
        path = row["path"]
        if "://" not in path:
            absolute = Path(path).resolve()
            path = str(absolute)
            if absolute.is_relative_to(root.parent):
                path = os.path.relpath(absolute, root)
        stored.append({**row, "path": path})
    pq.write_table(pa.Table.from_pylist(stored, SCHEMA), directory / VIDEOS_FILE, write_page_checksum=True)


def video_row(key: str, video_id: str, label: int, media: Media, facts: VideoFacts) -> dict[str, Any]:
    """Create a row of `videos.parquet`."""
    return {
        "key": key, "video_id": video_id, "label": label, "path": media.path, "start": media.start, "size": media.size,
        **{name: getattr(facts, name) for name in FACTS},
        "key_frames": list(facts.key_frames), "key_times": list(facts.key_times),
    }  # fmt: skip


class VideoSource:
    """The videos of a dataset by number, for training (`TrainingData`) and evaluation. It can be pickled."""

    def __init__(self, directory: Path) -> None:
        """Read the index.

        Raises:
            UserError: If the index is missing or damaged.
        """
        self.directory = directory
        if not (directory / VIDEOS_FILE).is_file():
            raise UserError(f"{directory}: {VIDEOS_FILE} is missing; expected a dataset of videos")
        self.table = read_parquet(directory / VIDEOS_FILE, SCHEMA.names)
        with reading(directory / VIDEOS_FILE, "an index of videos"):
            if self.table.num_rows and min(self.table["num_frames"].to_pylist()) < 1:
                raise ValueError("a video without frames")
        sizes = [VIDEOS_PER_WINDOW] * (len(self) // VIDEOS_PER_WINDOW)
        self.shard_sizes = np.array([*sizes, len(self) - sum(sizes)])
        self.epochs: Epochs = SameEpochs(self.shard_sizes)

    @classmethod
    def of(cls, dataset: VideoDataset) -> VideoSource:
        """Open an artifact."""
        return cls(dataset.path.resolve())

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoSource, (self.directory,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> VideoSample:
        """Look up a video by its number, without reading its file."""
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        row = self.table.slice(index, 1).to_pylist()[0]
        facts = VideoFacts(
            **{name: row[name] for name in FACTS},
            key_frames=tuple(row["key_frames"]),
            key_times=tuple(row["key_times"]),
        )
        path = row["path"] if "://" in row["path"] else str(self.directory / row["path"])
        media = Media(path, row["start"], row["size"])
        return VideoSample(row["key"], uid_of(row["key"]), b"", label=row["label"], media=media, facts=facts)

    def facts(self, index: int) -> VideoSample:
        """Look up a video by its number, without reading its file."""
        return self[index]

    def sample(self, index: int, epoch: int) -> VideoSample:
        """Look up a video by its number. It is the same in every epoch."""
        return self[index]

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """Create the endless stream of video numbers for training."""
        return SampleOrder(self.epochs, seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a video, as a replacement for an unusable video."""
        return self.epochs.sample(epoch, number)

    def where(self, index: int) -> str:
        """Format the address of a video for messages."""
        sample = self[index]
        if sample.media.start < 0:
            return sample.media.path
        return f"{sample.media.path}:{sample.key}"  # the tar does not say which video

    @cached_property
    def labels(self) -> list[int]:
        """Class of each video."""
        labels: list[int] = self.table["label"].to_pylist()
        return labels

    @cached_property
    def keys(self) -> list[str]:
        """Key of each video."""
        keys: list[str] = self.table["key"].to_pylist()
        return keys
