"""Statistics of a dataset: sizes of images, lengths of captions, and images that occur twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vfm.data.index.source import Source
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample

NUM_SAMPLES = 5000  # samples that are read


@dataclass
class Statistics:
    """Numbers about the first samples of a dataset.

    Attributes:
        num_samples: number of samples that were read.
        sizes: width and height of each image.
        words: number of words of each caption, by language.
        copies: addresses of images with the same bytes as an earlier one.
        counts: number of images of each class, by label.
    """

    num_samples: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    words: dict[str, list[int]] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    def lines(self, class_names: Sequence[str] = ()) -> Iterator[str]:
        """Yield a line for each kind of number."""
        if self.sizes:
            sides = sorted(min(size) for size in self.sizes)
            yield f"shorter side of the images: {_range(sides)} pixels"
        for language, counts in self.words.items():
            yield f"words of a caption ({language}): {_range(sorted(counts))}"
        if self.counts:
            (most, largest), (least, smallest) = self.counts.most_common(1)[0], self.counts.most_common()[-1]
            yield f"images of a class: {smallest:,} ({class_names[least]}) to {largest:,} ({class_names[most]})"
        if self.copies:
            yield f"copies: {len(self.copies):,} images have the bytes of an earlier one; the first is {self.copies[0]}"


def dataset_statistics(source: Source, num_samples: int = NUM_SAMPLES) -> Statistics:
    """Read the first samples of a dataset, with the headers of their images. Bad samples are left out."""
    statistics, hashes = Statistics(), set()
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
        digest = hashlib.sha256(sample.image).digest()
        if digest in hashes:
            statistics.copies.append(source.where(number))
        hashes.add(digest)
    return statistics


def _range(values: Sequence[int]) -> str:
    """Write the smallest, the median and the largest of sorted values."""
    return f"{values[0]:,} to {values[-1]:,}, median {values[len(values) // 2]:,}"
