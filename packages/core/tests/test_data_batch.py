"""Tensors whose sizes differ between samples are stacked as lists and moved with the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data import Ragged, map_tensors
from vfm.data.loading.batch import stack


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


@dataclass(frozen=True)
class Views:
    image: Tensor
    others: tuple[Tensor | None, ...] = ()


def test_tuples_are_stacked_part_by_part():
    made = [(str(n), Views(torch.zeros(4), (torch.full((3,), n), None))) for n in range(2)]
    batch = stack(made, [])
    assert batch.inputs.others[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch.inputs.others[1] is None
    doubled = map_tensors(batch.inputs, lambda tensor: 2 * tensor)
    assert doubled.others[0].max() == 2
    assert stack([("a", Views(torch.zeros(1)))], []).inputs.others == ()
