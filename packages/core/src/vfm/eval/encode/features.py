"""Features of a dataset's images by several models at once, so that each image is read and decoded once."""

# N images, D width

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import BadSample, Sample, Source, decode_image, open_dataset
from vfm.eval.base import ReadSettings
from vfm.eval.encode.bad_samples import BadSamples
from vfm.eval.encode.feature_cache import FeatureCache
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import ITEM_BYTES, sample_digest
from vfm.eval.encode.row_files import RowFile
from vfm.interfaces import Context, LabeledDataset
from vfm.models import ClipModel, ImageEncoder, PooledVision, Preprocess
from vfm.models.preprocess import FittedImage
from vfm.train.parallel.sharing import AT_ONCE, in_batches, of_all, of_first, own_share, without_values

NumberedItem = tuple[int, tuple[Sample, bytes] | BadSample]
"""The number of a sample, with the sample without its image and its digest, or with the reason why it is bad."""
Features = dict[str, tuple[list[int], Tensor]]
"""By model, the numbers of samples and their features."""
Decoded = tuple[Sample, Any, bytes] | BadSample
"""A sample, its image (PIL, or resized for models with a `Preprocess`), and its digest, or why it is bad."""


@dataclass(frozen=True)
class Encoded:
    """The usable samples of a dataset, in its order, and the features of their images.

    Attributes:
        numbers: Index of each sample in the dataset, to read its image again.
        samples: The samples without their images.
        digests: Hash of each sample, including its image (`item_digest`).
        image_digests: Hash of each image alone.
        features: Features by the model's name, (N, D).
    """

    numbers: list[int]
    samples: list[Sample]
    digests: list[bytes]
    image_digests: list[bytes]
    features: dict[str, Tensor]

    @property
    def keys(self) -> list[str]:
        """Keys of the samples."""
        return [sample.key for sample in self.samples]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, (N,), of a labelled dataset."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)


def encode_dataset(
    ctx: Context,
    source: Source,
    encoders: Mapping[str, ImageEncoder],
    reading: ReadSettings,
    *,
    check: Callable[[Sample], None] = lambda sample: None,
    files: Mapping[str, RowFile] | None = None,
) -> Encoded:
    """Encode all images of a dataset. Bad samples are skipped, counted and reported.

    If several processes share the evaluation, each encodes a part. Rank 0 gets all features, the others get tensors
    of the same shape without values (`leave_to_first`). Features that an earlier evaluation has cached for all models
    are read from the cache (`FeatureCache`).

    Args:
        ctx: Receives progress and bad samples.
        source: The dataset.
        encoders: Models by name. All get the same images.
        reading: Batch size, threads and tolerated bad samples.
        check: Raises BadSample for a sample that this evaluation cannot use, such as one without a caption in its
            language.
        files: By the model's name, files for features in half precision, in the order of the dataset. The returned
            features then have no columns.

    Raises:
        UserError: If too many samples are bad, or a feature is not finite.
    """
    caches = _caches(source, encoders)
    cached = {name: set(cache.numbers.tolist()) for name, cache in caches.items()}
    # Only samples that no model needs to see again are not decoded.
    cached_by_all = set.intersection(*cached.values()) if cached else set()
    first = next(iter(caches.values()), FeatureCache())
    good: dict[int, tuple[Sample, bytes]] = {}
    bad = BadSamples(ctx)
    for number in sorted(cached_by_all):
        try:
            sample = source.facts(number)
            check(sample)
            good[number] = (sample, first.digest(number))
        except BadSample as problem:
            bad.skip(problem, source.where(number))
    new_numbers: defaultdict[str, list[int]] = defaultdict(list)
    new_rows: defaultdict[str, list[Tensor]] = defaultdict(list)
    missing = sorted(set(range(len(source))) - cached_by_all)
    batches = own_share(in_batches(missing, reading.batch_size))
    share = list(chain.from_iterable(batches))
    decoded = decoded_batches(source, reading, check, share, fits=preprocesses(encoders.values()))
    encoded = (_encode(batch, encoders, cached, reading.batch_size) for batch in decoded)
    seen = len(cached_by_all)
    for items, features_of_batch in of_all(encoded, for_others=_for_others, at_once=1 if files else AT_ONCE):
        for number, item in items:
            if isinstance(item, BadSample):
                bad.skip(item, source.where(number))
            else:
                good[number] = item
        for name, (numbers, rows) in features_of_batch.items():
            new_numbers[name] += numbers
            new_rows[name].append(_write(files[name], rows) if files else rows)
        seen += len(items)
        ctx.progress(seen, len(source), "images")
    bad.check(reading, len(source))
    for name, numbers in new_numbers.items():
        new_digests = [good[number][1] for number in numbers]
        caches[name].update(numbers, new_digests, torch.cat(new_rows[name]))
    numbers = sorted(good)
    samples = []
    digests = []
    image_digests = []
    for number in numbers:
        sample, digest = good[number]
        samples.append(sample)
        digests.append(digest[:ITEM_BYTES])
        image_digests.append(digest[ITEM_BYTES:])
    features = {name: cache.rows(numbers) for name, cache in caches.items()}
    whole = Encoded(numbers, samples, digests, image_digests, features)

    def check_rows() -> None:  # also of cached features, which an older version may have stored unchecked
        for name, rows in features.items():
            check_finite(rows, name, whole.keys)

    of_first(check_rows)
    return whole


def _caches(source: Source, encoders: Mapping[str, ImageEncoder]) -> dict[str, FeatureCache]:
    """Read the cached features of each model in the first process, and share which ones exist."""

    def read() -> dict[str, FeatureCache]:
        caches = {}
        for name, encoder in encoders.items():
            caches[name] = FeatureCache.of(source, getattr(encoder, "features_key", ""))
        return caches

    def without_values_of(caches: dict[str, FeatureCache]) -> dict[str, FeatureCache]:
        return {name: cache.without_values() for name, cache in caches.items()}

    return of_first(read, for_others=without_values_of)


def _encode(
    batch: Sequence[tuple[int, Decoded]],
    encoders: Mapping[str, ImageEncoder],
    cached: Mapping[str, set[int]],
    batch_size: int,
) -> tuple[list[NumberedItem], Features]:
    """Encode the images of a batch that are not cached yet; return its samples without images, and the features.

    Raises:
        UserError: If a feature is not finite.
    """
    items: list[NumberedItem] = []
    good: list[tuple[int, str, Any]] = []
    for number, item in batch:
        if isinstance(item, BadSample):
            items.append((number, item))
        else:
            sample, image, digest = item
            good.append((number, sample.key, image))
            # The image files of all batches would not fit in memory.
            items.append((number, (replace(sample, image=b""), digest)))
    features = {}
    for name, encoder in encoders.items():
        # The caches of models may differ, as they may have been filled by different runs.
        uncached = [item for item in good if item[0] not in cached[name]]
        if uncached:
            numbers, keys, images = zip(*uncached, strict=True)
            rows = encoder.encode_images(list(images), batch_size)
            check_finite(rows, name, keys)
            features[name] = (list(numbers), rows)
    return items, features


def _for_others(encoded: tuple[list[NumberedItem], Features]) -> tuple[list[NumberedItem], Features]:
    items, features = encoded
    return items, {name: (numbers, without_values(part)) for name, (numbers, part) in features.items()}


def _write(file: RowFile, rows: Tensor) -> Tensor:
    """Write features to a file, and return them without columns."""
    file.append(rows)
    return rows.new_empty(len(rows), 0)


def encode_labeled(
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    data: LabeledDataset,
    reading: ReadSettings,
    files: Mapping[str, RowFile] | None = None,
) -> Encoded:
    """Encode all images of a labelled dataset with `encode_dataset`.

    A sample without a label is a bad one.

    Args:
        ctx: As in `encode_dataset`.
        encoders: As in `encode_dataset`.
        data: Labelled images.
        reading: As in `encode_dataset`.
        files: As in `encode_dataset`.
    """

    def check(sample: Sample) -> None:
        if sample.label is None:
            raise BadSample("missing_label", sample.key)

    return encode_dataset(ctx, open_dataset(data), encoders, reading, check=check, files=files)


def preprocesses(encoders: Iterable[ImageEncoder]) -> frozenset[Preprocess]:
    """Collect how images are resized for models. The set is empty if any model needs the images themselves."""
    resized = set()
    for encoder in encoders:
        if not isinstance(encoder, ClipModel | PooledVision):
            return frozenset()
        resized.add(encoder.preprocess)
    return frozenset(resized)


def decoded_batches(
    source: Source,
    reading: ReadSettings,
    check: Callable[[Sample], None],
    numbers: Sequence[int] | None = None,
    *,
    fits: frozenset[Preprocess] = frozenset(),
) -> Iterator[list[tuple[int, Decoded]]]:
    """Yield batches of (number, (sample, image, digest)).

    The next batch is decoded while the caller works on the current one.

    Args:
        source: The samples.
        reading: Batch size of the evaluation.
        check: Raises BadSample for a sample that cannot be used.
        numbers: Samples to read. Default: all.
        fits: Preprocessings for which images are resized here.
    """

    def submit(number: int) -> Future[Decoded] | BadSample:
        try:
            sample = source[number]  # read here, in one thread: readers share file handles
            check(sample)
        except BadSample as bad:
            return bad
        return pool.submit(_decode, sample, fits)

    def results(pending: Sequence[tuple[int, Future[Decoded] | BadSample]]) -> list[tuple[int, Decoded]]:
        return [(number, item.result() if isinstance(item, Future) else item) for number, item in pending]

    with ThreadPoolExecutor(max(1, reading.threads)) as pool:
        waiting: list[tuple[int, Future[Decoded] | BadSample]] = []
        chosen = range(len(source)) if numbers is None else numbers
        for start in range(0, len(chosen), reading.batch_size):
            batch = chosen[start : start + reading.batch_size]
            source.read_ahead(batch)
            submitted = list(zip(batch, map(submit, batch), strict=True))
            if waiting:
                yield results(waiting)
            waiting = submitted  # decoded by the pool while the caller encodes the batch before
        if waiting:
            yield results(waiting)


def _decode(sample: Sample, fits: frozenset[Preprocess]) -> Decoded:
    try:
        image: Any = decode_image(sample.image, sample.key)
        if fits:
            image = FittedImage({preprocess: preprocess.fit(image) for preprocess in fits})
        return sample, image, sample_digest([sample.key, sample.texts, sample.label], sample.image)
    except BadSample as bad:
        return bad
