"""Wrong data, settings and calls of `vfm.fit`: one line that says what was expected, where, and what was found."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import vfm
from fit_world import QUIET, Classify, Labelled, fitted, loss, model


class Yields(Dataset):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


GOOD = (torch.zeros(3, 4, 4), 0)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (Yields(), r"Yields: expected at least one sample, got an empty dataset"),
        (Yields(None), r"Yields\[0\]: expected tensors, .*; got None"),
        (Yields("a text"), r"Yields\[0\]: expected tensors, .* at least one tensor among them; got 'a text'"),
        (Yields((object(), 0)), r"Yields\[0\]\[0\]: expected tensors, .*; got a object"),
        (Yields(Image.new("F", (4, 4))), r"Yields\[0\]: expected an image of 8 or 16 bits, got one of mode F; give an"),
        (Yields(GOOD, None), r"Yields\[1\]: expected tensors, .*; got None"),
        (
            Yields(GOOD, (torch.zeros(3, 5, 4), 0)),
            r"Yields\[1\]\[0\]: expected float32 \(3, 4, 4\), as Yields\[0\] has, got float32 \(3, 5, 4\); resize",
        ),
        (Yields(GOOD, GOOD[:1]), r"Yields\[1\]\[1\]: expected int64 \(\), as Yields\[0\] has, got nothing"),
        (DataLoader(Yields(*[GOOD] * 3), batch_size=4, drop_last=True), "DataLoader: it yields no batch"),
        (iter([GOOD]), "expected a Dataset, a list or a DataLoader, got a list_iterator"),
        (5, "expected a Dataset, a list or a DataLoader, got a int"),
        ("photos/", "expected a Dataset, a list or a DataLoader, got a str"),
        ({"images": GOOD}, "expected a Dataset, a list or a DataLoader, got a dict"),
    ],
)
def test_wrong_data_are_one_line(data: Any, line: str) -> None:
    with pytest.raises(vfm.UserError, match=line) as caught:
        fitted(data, steps=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lr": -1}, "fit: lr: must be at least 0, got -1"),
        ({"steps": 0}, "fit: steps: must be at least 1, got 0"),
        ({"optimzer": {"type": "sgd"}}, "fit: optimzer: unknown key; did you mean 'optimizer'?"),
        ({"batch_size": 4}, "fit: batch_size: unknown key; did you mean 'global_batch_size: 4' (over all processes)?"),
        ({"device": "gpu"}, "fit: runtime.device: expected a string that matches"),
        ({"epochs": 3}, "fit: epochs: this setting is only for recipes"),
        ({"xyz": 3}, "fit: xyz: unknown key; known: checkpoint, .*, device, .*, folder, .*, loss, .*, workers$"),
        ({"devise": "cpu"}, "fit: devise: unknown key; did you mean 'device'"),
        ({"runtime": {"processes": 2}}, "runtime.processes: .*, start it with torchrun --nproc-per-node=2: expected 1"),
        ({"grad_checkpointing": True}, "grad_checkpointing: Sequential has no set_grad_checkpointing"),
        (
            {"loss": lambda net, batch: (net(batch[0]).mean(), {"loss": 99.0})},
            "loss: metric 'loss': the training logs its own; give another name",
        ),
        (
            {"loss": lambda net, batch: (net(batch[0]).mean(), {"train/loss": 99.0})},
            "loss: metric 'train/loss': the training logs its own; give another name, without train/",
        ),
        ({"evaluation": {}}, "fit: evaluation: this setting is only for recipes"),
        ({"loss": None}, "fit: Sequential is not a vfm.train.Task: give loss, a function of"),
        ({"loss": lambda net, batch: net(batch[0])}, "loss: expected a scalar tensor, .* got a tensor of shape"),
        (
            {"loss": lambda net, batch: 0.5},
            "loss: expected a scalar tensor, or one with a dict of metrics, got a float",
        ),
        (
            {"loss": lambda net, batch: (net(batch[0]).mean(), {"all": batch[1]})},
            r"loss: metric 'all': expected a number, got a tensor of shape \(4,\)",
        ),
        ({"loss": lambda net, batch: (net(batch[0]).mean(), {"a": "b"})}, "metric 'a': expected a number, got a str"),
        ({"loss": lambda net, batch: net(batch[0]).mean().detach()}, "loss: it has no gradient"),
        ({"loss": lambda net, batch: net(batch[0]).mean() * torch.inf}, "the loss is not finite at step 1; .*Labelled"),
    ],
)
def test_wrong_settings_are_one_line(given: dict[str, Any], line: str) -> None:
    settings: dict[str, Any] = {"steps": 2, "global_batch_size": 4, "loss": loss, **QUIET, **given}
    with pytest.raises(vfm.UserError, match=line) as caught:
        vfm.fit(model(), Labelled(), **settings)
    assert "\n" not in str(caught.value)


def test_the_keys_that_are_suggested_are_the_arguments_of_a_call() -> None:
    parameters = set(signature(vfm.fit).parameters) - {"task", "data", "settings"}
    with pytest.raises(vfm.UserError) as caught:
        vfm.fit(model(), Labelled(), loss=loss, steps=1, xyz=3)
    known = set(str(caught.value).partition("known: ")[2].split(", "))
    assert parameters <= known
    assert not known & {"evaluation", "kind", "name", "samples_seen"}


def test_other_wrong_calls_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pairs = DataLoader(Labelled(), batch_size=4)
    for call, line in {
        lambda: vfm.fit(Classify(), Labelled(), loss=loss, steps=1): "Classify is a Task, which has its own loss",
        lambda: vfm.fit(loss, Labelled(), loss=loss, steps=1): "expected a module or a vfm.train.Task, got a function",
        lambda: vfm.fit(model().requires_grad_(False), Labelled(), loss=loss, steps=1): "has no parameter to train",
        lambda: fitted(Labelled(), tmp_path / "file"): "file: expected a folder, got a file",
        lambda: fitted(pairs, global_batch_size=8): "the DataLoader's batches have 4 samples, got 8",
        lambda: fitted(pairs, micro_batch_size=2): "batches are taken whole; give its Dataset instead",
        lambda: fitted(pairs, workers=2): "workers: a DataLoader reads by its own num_workers: expected 0, got 2",
    }.items():
        with pytest.raises(vfm.UserError, match=line):
            call()
