"""Key, location and class of the videos of a dataset, before they are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vfm.base import UserError, positions
from vfm.data.ledger.account import Account
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import MAX_CLASSES
from vfm.data.videos.media import Media


@dataclass(frozen=True)
class ListedVideo:
    """A video of a listing.

    Attributes:
        key: Name of the video in the dataset.
        media: Location of the video.
        label: Class of the video, by number or by name.
        video_id: Identifies the source of the video in all datasets that contain it (Kinetics: YouTube's id).
        problem: Why the video cannot be used.
    """

    key: str
    media: Media
    label: int | str
    video_id: str = ""
    problem: BadSample | None = None


@dataclass(frozen=True)
class Listing:
    """All videos of a dataset, in the order of its files.

    Attributes:
        format: Name of the layout.
        videos: The videos.
        class_names: Class names in the order of the labels. Empty: the sorted labels, or their numbers.
        accounts: The video of each entry of a folder, line of a list or byte of a tar, for the ledger.
    """

    format: str
    videos: Sequence[ListedVideo]
    class_names: Sequence[str] = field(default=())
    accounts: Sequence[Account] = ()

    def labelled(self, names: Sequence[str]) -> tuple[list[str], list[int]]:
        """Choose the class names, and number the label of each video.

        Args:
            names: Class names given by the user. Empty: the dataset's names.

        Raises:
            UserError: If a label has no name.
        """
        known = list(names or self.class_names)
        words = {video.label for video in self.videos if isinstance(video.label, str)}
        if not known:
            known = sorted(words) or self._numbers()
        label_of = positions(known)
        labels = []
        for video in self.videos:
            label = label_of.get(video.label, -1) if isinstance(video.label, str) else video.label
            if not 0 <= label < len(known):
                raise UserError(f"{video.key}: expected a label of the {len(known)} classes, got {video.label!r}")
            labels.append(label)
        return known, labels

    def _numbers(self) -> list[str]:
        """Name the classes by their numbers, up to the largest."""
        last = max(self.videos, key=lambda video: int(video.label), default=None)
        largest = int(last.label) if last else 0
        if last and largest >= MAX_CLASSES:
            raise UserError(
                f"{last.key}: expected a label below {MAX_CLASSES:,}, or names of the classes, got {largest}"
            )
        return list(map(str, range(largest + 1)))
