"""The classes of an evaluation: which of a dataset's are evaluated, which are background, and the words of each.

The conventions are those of the eight sets that training-free segmentation is compared on. Their sources are the
published configurations of SCLIP and NACLIP; the scores depend on them as much as on the model.
"""

# K evaluated classes, W words

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError, did_you_mean
from vfm.data.annotated.records import IGNORED
from vfm.eval.class_names import check_class_names
from vfm.eval.open_segmentation.stages import OpenSegmentation
from vfm.interfaces import AnnotatedImages
from vfm.storage import files

BACKGROUND = "background"


@dataclass(frozen=True)
class SetConvention:
    """How a published set is evaluated.

    num_classes: of the set's labels.
    background: the first class is the background: predicted by a threshold (True), ignored (False), or it is no
        background (None).
    kept: so many classes are kept, and the others and unlabelled pixels become an added background; 0: all.
    short_side: pixels of the images' shorter side.
    """

    num_classes: int
    background: bool | None = None
    kept: int = 0
    short_side: int = 336


CONVENTIONS = {
    "voc21": SetConvention(21, background=True),
    "voc20": SetConvention(21, background=False),
    "pc60": SetConvention(60, background=True),
    "pc59": SetConvention(60, background=False),
    "object": SetConvention(171, kept=80),  # COCO-Stuff: its things
    "stuff": SetConvention(171),
    "city": SetConvention(19, short_side=560),
    "ade": SetConvention(150),
}


@dataclass(frozen=True)
class EvaluatedClasses:
    """The K classes of an evaluation.

    names: of the classes.
    words: of each class; a class can have several.
    table: evaluated class of each label of the dataset and, as the last entry, of unlabelled pixels; -1: ignored.
    background: the class that a threshold decides, or None.
    """

    names: list[str]
    words: list[list[str]]
    table: NDArray[np.int16]
    background: int | None

    @property
    def owners(self) -> NDArray[np.int64]:
        """Class of each word, (W,), in the order of `all_words`."""
        return np.repeat(np.arange(len(self.words)), [len(words) for words in self.words])

    @property
    def all_words(self) -> list[str]:
        """The words, class by class."""
        return [word for words in self.words for word in words]

    def truth(self, labels: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the evaluated class of each pixel of a map of the dataset's labels, -1: ignored."""
        return np.asarray(self.table[labels])  # -1, unlabelled, is the last entry


def evaluated_classes(config: OpenSegmentation, data: AnnotatedImages) -> EvaluatedClasses:
    """Return the classes of an evaluation on a dataset.

    Raises:
        UserError: a class is not the dataset's, or the words do not fit the classes.
    """
    names = data.class_names
    background, folded, ignored = config.background, list(config.as_background), list(config.ignore)
    unlabelled = config.unlabelled_is_background
    if config.convention:
        rule = CONVENTIONS[config.convention]
        if len(names) != rule.num_classes:
            expected = f"expected {rule.num_classes} classes for convention {config.convention}"
            raise UserError(f"{config.data}: {expected}, got {len(names)}")
        background = names[0] if rule.background else BACKGROUND if rule.kept else None
        ignored = [names[0]] if rule.background is False else []
        folded, unlabelled = (names[rule.kept :], True) if rule.kept else ([], False)
    for field, given in (("as_background", folded), ("ignore", ignored)):
        for name in given:
            if name not in names:
                raise UserError(f"{field}: {config.data} has no class {name!r}{did_you_mean(name, names)}")
            if name == background or (field == "ignore" and name in folded):
                raise UserError(f"{field}: class {name!r} is {'the' if name == background else 'in the'} background")
    kept = [name for name in names if name not in {*folded, *ignored}]
    if background is not None and background not in kept:
        kept = [background, *kept]
    place = {name: number for number, name in enumerate(kept)}
    ground = IGNORED if background is None else place[background]
    labels = [IGNORED if name in ignored else ground if name in folded else place[name] for name in names]
    table = np.array([*labels, ground if unlabelled else IGNORED], dtype=np.int16)
    check_class_names(kept, str(config.data))
    return EvaluatedClasses(kept, _words(config, kept), table, None if background is None else place[background])


def short_side_of(config: OpenSegmentation, window: int) -> int:
    """Return the pixels of the images' shorter side: the field, the convention's, or 1.5 windows."""
    by_convention = CONVENTIONS[config.convention].short_side if config.convention else round(1.5 * window)
    return config.short_side or by_convention


def _words(config: OpenSegmentation, names: Sequence[str]) -> list[list[str]]:
    if config.names is None:
        return [[name] for name in names]
    is_file = isinstance(config.names, str)
    lines = files.read_text(str(config.names)).splitlines() if is_file else list(config.names)
    lines = lines[: 1 + max((n for n, line in enumerate(lines) if line.strip()), default=-1)] if is_file else lines
    where = str(config.names) if is_file else "names"
    if len(lines) != len(names):
        shown = ", ".join(names[:3])
        raise UserError(f"{where}: expected {len(names)} classes ({shown}, ...), got {len(lines)}")
    words = [[word.strip() for word in line.split(config.separator)] for line in lines]
    seen: dict[str, str] = {}
    for name, own in zip(names, words, strict=True):
        for word in own:
            if not word:
                raise UserError(f"{where}: class {name!r} has an empty word in {config.separator.join(own)!r}")
            if word in seen:
                raise UserError(f"{where}: {word!r} is a word of {seen[word]!r} and of {name!r}")
            seen[word] = name
    return words
