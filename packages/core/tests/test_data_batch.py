"""Tensors whose sizes differ between samples are stacked as lists and moved with the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data.batch import stack
from vfm.train import Ragged, map_tensors


@dataclass(frozen=True)
class Boxes:
    image: Tensor
    boxes: Ragged
    masks: Ragged | None = None


def test_parts_of_different_sizes_follow_each_other():
    sizes = [2, 0, 3]
    made = [(str(n), Boxes(torch.zeros(4), Ragged((torch.full((n, 4), n),)))) for n in sizes]
    batch = stack(made, [])
    assert batch.inputs.image.shape == (3, 4)
    assert [len(part) for part in batch.inputs.boxes.parts] == sizes
    assert batch.inputs.masks is None
    halved = map_tensors(batch.inputs, lambda tensor: tensor / 2)
    assert halved.boxes.parts[2].unique().tolist() == [1.5]
