"""Loaders of a user for `vfm.fit`: the samples that are counted are those of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

import vfm
from fit_world import QUIET, Labelled, loss, model


class Batches(IterableDataset):
    """Batches of its own, as webdataset makes them; the last one of an epoch is smaller."""

    def __init__(self, size: int = 30, batch_size: int = 8) -> None:
        self.size, self.batch_size = size, batch_size

    def __iter__(self) -> Iterator[list[Tensor]]:
        data = Labelled(self.size)
        for start in range(0, self.size, self.batch_size):
            stop = min(start + self.batch_size, self.size)
            yield default_collate([data[index] for index in range(start, stop)])


class OwnIterable:
    """An iterable that is no DataLoader."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from Batches()


LOADERS = {
    "a batch sampler": lambda: DataLoader(
        Labelled(30), batch_sampler=BatchSampler(SequentialSampler(range(30)), 8, drop_last=False)
    ),
    "no batch size": lambda: DataLoader(Batches(), batch_size=None),
    "an iterable": OwnIterable,
    "a smaller last batch": lambda: DataLoader(Labelled(30), batch_size=8),
}


def trained(data: Any, folder: Path | None = None, **settings: Any) -> vfm.Fit:
    given: dict[str, Any] = {"loss": loss, "steps": 5, "log_every": 1, **QUIET, **settings}
    return vfm.fit(model(), data, folder=folder, **given)


@pytest.mark.parametrize("name", LOADERS)
def test_samples_are_those_of_the_batches(name: str) -> None:
    assert [row["samples"] for row in trained(LOADERS[name]()).metrics] == [8, 16, 24, 30, 38]


def test_a_resumed_training_counts_the_samples_before(tmp_path: Path) -> None:
    steps = 0

    def interrupted(net: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return loss(net, batch)

    settings: dict[str, Any] = {"steps": 6, "checkpoint": {"every_steps": 2}}
    whole = trained(OwnIterable(), **settings)
    with pytest.raises(KeyboardInterrupt):
        trained(OwnIterable(), tmp_path, **settings, loss=interrupted)
    resumed = trained(OwnIterable(), tmp_path, **settings)
    assert [row["samples"] for row in whole.metrics] == [8, 16, 24, 30, 38, 46]
    assert resumed.metrics == whole.metrics


def test_a_given_batch_size_must_be_that_of_the_first_batch() -> None:
    for given in (OwnIterable(), DataLoader(Batches(), batch_size=None)):
        line = "global_batch_size: expected 8, the samples of its first batch, got 5; leave it out"
        with pytest.raises(vfm.UserError, match=f"^{type(given).__name__}: {line}$"):
            trained(given, global_batch_size=5)
        assert trained(given, global_batch_size=8).metrics[-1]["samples"] == 38
