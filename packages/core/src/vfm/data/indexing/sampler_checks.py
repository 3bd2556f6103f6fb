"""Checks of samplers that name a column, and facts about their epochs, before a training starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vfm.base import UserError, load_function
from vfm.data.index.column_sampling import LABEL, SamplingSummary, column_values, known_columns
from vfm.data.index.source import open_dataset
from vfm.interfaces import Artifact, ColumnSampler, ImageDataset, Preflight, TaggedImages, Training, VideoDataset

MOST_SAMPLES = 1_000_000  # larger data are read when the training starts, not for a plan


def check_columns(sampler: ColumnSampler, stage: Training, known: Preflight) -> None:
    """Check that the data of a training have, or will have, the column of its sampler.

    Raises:
        UserError: If the data lack the column.
    """
    for ref in stage.datasets:
        columns = _columns(known.artifact(ref), known.stage(ref))
        if columns is not None and sampler.column not in columns:
            raise UserError(
                f"loading.sampler: '{ref}': expected one of its columns, {', '.join(columns) or 'none'}, got"
                f" {sampler.column!r}; `columns` of the data's stage names them"
            )


def _columns(data: Artifact | None, maker: Any) -> list[str] | None:
    """List the columns of data that exist, or of a stage that will make them. None: unknown."""
    if data is None:
        locations = getattr(maker, "columns", None)
        return None if locations is None else known_columns(locations)
    if isinstance(data, VideoDataset):
        return [LABEL]
    if isinstance(data, (ImageDataset, TaggedImages)):
        return known_columns(open_dataset(_images_of(data)).index.spec.columns)
    return []


def describe_epochs(sampler: ColumnSampler, stage: Training, known: Preflight) -> Iterator[str]:
    """Describe the epochs of each dataset that exists.

    Raises:
        UserError: If a column is missing, or a weight is not a number of at least 0.
    """
    for ref in stage.datasets:
        data = known.artifact(ref)
        if data and data.num_samples <= MOST_SAMPLES:
            values = column_values(_samples(data), sampler.column)
            names = getattr(data, "class_names", None)
            if names and sampler.column == LABEL:
                values = [names[value] if isinstance(value, int) else value for value in values]
            yield f"{stage.name} on {ref}: {SamplingSummary.of(values, sampler, ref).line(sampler)}"


def _samples(data: Any) -> object:
    if isinstance(data, VideoDataset):
        return load_function("vfm.data.videos.source:VideoSource")(data.path.resolve())
    return open_dataset(_images_of(data))


def _images_of(data: Any) -> ImageDataset:
    return ImageDataset.load(data.linked(data.data)) if isinstance(data, TaggedImages) else data
