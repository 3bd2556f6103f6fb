"""Count image sizes, caption lengths and images that occur twice, and statistics from plugins."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from PIL import Image

from vfm.base import UserError, how_to_install, load_function
from vfm.data import BadSample, Sample, Source, open_image
from vfm.interfaces import load_plugins, naming_extras

NUM_SAMPLES = 5000  # samples that are read


class SampleStatistic(Protocol):
    """A description of samples by a plugin (`vfm_statistics`)."""

    def add(self, sample: Sample, image: Image.Image, where: str) -> None:
        """Take a sample with its undecoded image and its address."""

    def lines(self) -> Iterator[str]:
        """Yield the lines to print."""


@dataclass
class Statistics:
    """Numbers about the first samples of a dataset.

    Attributes:
        num_samples: Number of samples that were read.
        sizes: Width and height of each image.
        words: Number of words of each caption, by language.
        copies: Addresses of images with the same bytes as an earlier one.
        counts: Number of images of each class, by label.
        columns: Values of each column.
        others: Statistics of plugins.
        absent: Statistics whose package is not installed, and how to install it.
    """

    num_samples: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    words: dict[str, list[int]] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    columns: dict[str, list[str | float]] = field(default_factory=dict)
    others: list[SampleStatistic] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def lines(self, class_names: Sequence[str] = ()) -> Iterator[str]:
        """Yield a line for each kind of number."""
        if self.sizes:
            sides = sorted(map(min, self.sizes))
            yield f"shorter side of the images: {_range(sides)} pixels"
        for language, counts in self.words.items():
            yield f"words of a caption ({language}): {_range(sorted(counts))}"
        if self.counts:
            (most, largest), (least, smallest) = self.counts.most_common(1)[0], self.counts.most_common()[-1]
            yield f"images of a class: {smallest:,} ({class_names[least]}) to {largest:,} ({class_names[most]})"
        if self.copies:
            yield f"copies: {len(self.copies):,} images have the bytes of an earlier one; the first is {self.copies[0]}"
        for name, values in self.columns.items():
            numbers = [value for value in values if not isinstance(value, str)]
            if len(numbers) == len(values):
                about = f"{min(numbers):g} to {max(numbers):g}"
            else:
                about = _most_common(values)
            yield f"column {name}: {about}"
        for statistic in self.others:
            name = type(statistic).__name__
            try:
                with naming_extras(name):
                    yield from statistic.lines()
            except (ModuleNotFoundError, UserError) as error:
                yield f"not described: {error}"
        yield from self.absent


def dataset_statistics(source: Source, num_samples: int = NUM_SAMPLES) -> Statistics:
    """Read the first samples of a dataset, with the headers of their images. Bad samples are skipped."""
    statistics = Statistics()
    hashes = set()
    names = list(chain.from_iterable(load_plugins().hook.vfm_statistics()))
    statistics.others = [load_function(name)() for name in names]
    if not names:
        statistics.absent.append(f"languages and near duplicates: {how_to_install('vfm-curation')}")
    for number in range(min(len(source), num_samples)):
        try:
            sample = source[number]
            image = open_image(sample.image, source.where(number))
        except BadSample:  # counted by the import
            continue
        statistics.num_samples += 1
        statistics.sizes.append(image.size)
        for language, texts in sample.texts.items():
            statistics.words.setdefault(language, []).extend(len(text.split()) for text in texts)
        if sample.label is not None:
            statistics.counts[sample.label] += 1
        for name, value in sample.columns.items():
            statistics.columns.setdefault(name, []).append(value)
        for statistic in statistics.others:
            statistic.add(sample, image, source.where(number))
        digest = hashlib.sha256(sample.image).digest()
        if digest in hashes:
            statistics.copies.append(source.where(number))
        hashes.add(digest)
    return statistics


def _most_common(values: Sequence[str | float]) -> str:
    """Write the number of values, and the most common ones."""
    counts = Counter(map(str, values))
    common = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(3))
    return f"{len(counts):,} values, such as {common}"


def _range(values: Sequence[int]) -> str:
    """Write the smallest, the median and the largest of sorted values."""
    return f"{values[0]:,} to {values[-1]:,}, median {values[len(values) // 2]:,}"
