"""Choose the classes of a dataset that are evaluated or background, and the words for each.

The conventions are taken from the published configurations of SCLIP and NACLIP for the eight datasets on which
training-free segmentation is compared. Scores depend on them as much as on the model.
"""

# K evaluated classes, W words

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError, did_you_mean, positions
from vfm.data.annotated.records import IGNORED
from vfm.eval.class_names import check_class_names
from vfm.eval.open_segmentation.stages import OpenSegmentation
from vfm.interfaces import AnnotatedImages
from vfm.storage import files

BACKGROUND = "background"


@dataclass(frozen=True)
class SetConvention:
    """How a published dataset is evaluated.

    Attributes:
        num_classes: Number of classes in the labels.
        background: Role of the first class: predicted by a threshold (True), ignored (False), or a class like any other
            (None).
        num_evaluated: Number of first classes that are evaluated. All others and unlabelled pixels become an additional
            background class. 0 evaluates all classes.
        short_side: Shorter side of the images in pixels.
    """

    num_classes: int
    background: bool | None = None
    num_evaluated: int = 0
    short_side: int = 336


CONVENTIONS = {
    "voc21": SetConvention(21, background=True),
    "voc20": SetConvention(21, background=False),
    "pc60": SetConvention(60, background=True),
    "pc59": SetConvention(60, background=False),
    "object": SetConvention(171, num_evaluated=80),  # the things of COCO-Stuff
    "stuff": SetConvention(171),
    "city": SetConvention(19, short_side=560),
    "ade": SetConvention(150),
}


@dataclass(frozen=True)
class EvaluatedClasses:
    """The K classes of an evaluation.

    Attributes:
        names: Names of the classes.
        words: Words for each class. A class can have several.
        table: Evaluated class for each label of the dataset and, as the last entry, for unlabelled pixels, -1 if
            ignored.
        background: The class that is predicted by a threshold, or None.
    """

    names: list[str]
    words: list[list[str]]
    table: NDArray[np.int16]
    background: int | None

    @property
    def owners(self) -> NDArray[np.int64]:
        """Class of each word, (W,), in the order of `all_words`."""
        return np.repeat(np.arange(len(self.words)), list(map(len, self.words)))

    @property
    def all_words(self) -> list[str]:
        """The words of all classes, class by class."""
        return list(chain.from_iterable(self.words))

    def truth(self, labels: NDArray[np.integer]) -> NDArray[np.int16]:
        """Map labels of the dataset to evaluated classes, -1 for ignored pixels."""
        return np.asarray(self.table[labels])  # -1, the label of unlabelled pixels, selects the last entry


def evaluated_classes(config: OpenSegmentation, data: AnnotatedImages) -> EvaluatedClasses:
    """Resolve the classes of an evaluation from its configuration and the dataset.

    Raises:
        UserError: If the dataset does not have a class, or the words do not fit the classes.
    """
    names = data.class_names
    background = config.background
    folded = list(config.as_background)
    ignored = list(config.ignore)
    unlabelled = config.unlabelled_is_background
    # A convention fixes what the other settings would choose one by one.
    if config.convention:
        rule = CONVENTIONS[config.convention]
        if len(names) != rule.num_classes:
            expected = f"expected {rule.num_classes} classes for convention {config.convention}"
            raise UserError(f"{config.data}: {expected}, got {len(names)}")
        background = names[0] if rule.background else None
        folded = []
        unlabelled = False
        if rule.num_evaluated:
            background = BACKGROUND
            folded = names[rule.num_evaluated :]
            unlabelled = True
        ignored = [names[0]] if rule.background is False else []
    # Names that do not exist are reported before anything is computed.
    for field, listed in (("as_background", folded), ("ignore", ignored)):
        for name in listed:
            if name not in names:
                raise UserError(f"{field}: {config.data} has no class {name!r}{did_you_mean(name, names)}")
            if name == background or (field == "ignore" and name in folded):
                role = "the" if name == background else "in the"
                raise UserError(f"{field}: class {name!r} is {role} background")
    evaluated = [name for name in names if name not in {*folded, *ignored}]
    if background is not None and background not in evaluated:
        evaluated = [background, *evaluated]
    check_class_names(evaluated, str(config.data))
    number_of = positions(evaluated)
    background_number = None if background is None else number_of[background]
    of_background = IGNORED if background_number is None else background_number
    number_of |= dict.fromkeys(folded, of_background) | dict.fromkeys(ignored, IGNORED)
    labels = [number_of[name] for name in names]
    table = np.array([*labels, of_background if unlabelled else IGNORED], dtype=np.int16)
    return EvaluatedClasses(evaluated, _words(config, evaluated), table, background_number)


def short_side_of(config: OpenSegmentation, window: int) -> int:
    """Choose the shorter side of the images in pixels.

    It is the configured one, the convention's, or 1.5 windows.
    """
    if config.short_side:
        return config.short_side
    if not config.convention:
        return round(1.5 * window)
    return CONVENTIONS[config.convention].short_side


def _words(config: OpenSegmentation, names: Sequence[str]) -> list[list[str]]:
    if config.names is None:
        return [[name] for name in names]
    if isinstance(config.names, str):
        where = config.names
        lines = files.read_text(config.names).splitlines()
        while lines and not lines[-1].strip():  # empty lines at the end of the file are no classes
            lines.pop()
    else:
        where = "names"
        lines = list(config.names)
    if len(lines) != len(names):
        shown = ", ".join(names[:3])
        raise UserError(f"{where}: expected {len(names)} classes ({shown}, ...), got {len(lines)}")
    words = []
    for line in lines:
        words.append(list(map(str.strip, line.split(config.separator))))
    seen: dict[str, str] = {}
    for name, words_of_class in zip(names, words, strict=True):
        for word in words_of_class:
            if not word:
                joined = config.separator.join(words_of_class)
                raise UserError(f"{where}: class {name!r} has an empty word in {joined!r}")
            if word in seen:
                raise UserError(f"{where}: {word!r} is a word of {seen[word]!r} and of {name!r}")
            seen[word] = name
    return words
