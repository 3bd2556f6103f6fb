"""The videos of a dataset as its files list them: key, place and class, before any is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vfm.base import UserError
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import MAX_CLASSES
from vfm.data.videos.media import Media


@dataclass(frozen=True)
class Listed:
    """One video.

    Attributes:
        key: its name in the dataset.
        media: its place.
        label: its class, by number, or by name.
        video_id: identifies the source of the video in all datasets that are made from it (Kinetics: YouTube's id).
        problem: why it cannot be used.
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
        format: name of the layout.
        videos: the videos.
        class_names: in the order of the labels; empty: the labels' own names, sorted, or their numbers.
    """

    format: str
    videos: Sequence[Listed]
    class_names: Sequence[str] = field(default=())

    def labelled(self, names: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the class names, and the label of each video by number.

        Args:
            names: given by the user; empty: the dataset's own.

        Raises:
            UserError: a label has no name.
        """
        known = list(names or self.class_names)
        words = {one.label for one in self.videos if isinstance(one.label, str)}
        if not known:
            known = sorted(words) or self._numbers()
        place = {name: number for number, name in enumerate(known)}
        labels = []
        for one in self.videos:
            label = place.get(one.label, -1) if isinstance(one.label, str) else one.label
            if not 0 <= label < len(known):
                raise UserError(f"{one.key}: expected a label of the {len(known)} classes, got {one.label!r}")
            labels.append(label)
        return known, labels

    def _numbers(self) -> list[str]:
        """Return the numbers of the classes up to the largest as their names."""
        last = max(self.videos, key=lambda one: int(one.label), default=None)
        largest = int(last.label) if last else 0
        if last and largest >= MAX_CLASSES:
            raise UserError(
                f"{last.key}: expected a label below {MAX_CLASSES:,}, or names of the classes, got {largest}"
            )
        return [str(number) for number in range(largest + 1)]
