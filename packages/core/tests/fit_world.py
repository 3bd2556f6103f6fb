"""A model, a loss and data of a user, for the tests of `vfm.fit`."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import vfm
from vfm.train import Task

QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


class Labelled(Dataset):
    """Images (3, 4, 4) whose brightest colour is their label, augmented by draws from all three global generators."""

    def __init__(self, size: int = 40, *, kill_at: int | None = None) -> None:
        self.size, self.reads, self.kill_at = size, 0, kill_at

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        if self.reads == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        image = torch.rand(3, 4, 4) * random.uniform(0.4, 0.5) + float(np.random.uniform(0, 0.1))
        image[index % 3] += 0.5
        return image, index % 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def loss(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    images, labels = batch
    logits = net(images)
    return cross_entropy(logits, labels), {"accuracy": (logits.argmax(1) == labels).float().mean()}


def fitted(data: Any, folder: Path | None = None, **settings: Any) -> vfm.Fit:
    given: dict[str, Any] = {
        "loss": loss,
        "steps": 20,
        "lr": 0.01,
        "log_every": 5,
        "checkpoint": {"every_steps": 4},
        **QUIET,
        **settings,
    }
    if not isinstance(data, DataLoader):
        given.setdefault("global_batch_size", 8)
    return vfm.fit(model(), data, folder=folder, **given)


@dataclass(frozen=True)
class Inputs:
    images: Tensor
    labels: Tensor


class Classify(Task[Inputs]):
    """A task of one's own, over a Dataset of its dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(self.net, (inputs.images, inputs.labels))
