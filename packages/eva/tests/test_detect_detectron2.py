"""With three stages the heads are the cascade that EVA used, on the same weights; and so are the names of its files."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

import detectron2_peer as peer
from vfm_eva.dense.detect.cascade import CascadeHeads
from vfm_eva.dense.detect.eva_layout import head_name
from vfm_eva.dense.detect.objects import TargetObjects
from vfm_eva.dense.detect.settings import Cascade, Selection


def expected(mode: str) -> dict[str, Any]:
    """Return detectron2's results: computed now where it can be imported, else those that were stored."""
    if importlib.util.find_spec("detectron2"):
        return peer.results(mode)
    return dict(json.loads(peer.FILE.read_text(encoding="utf-8"))[mode])


def heads_with(mode: str, shapes: dict[str, list[int]]) -> CascadeHeads:
    settings = Cascade(
        ious=list(peer.IOUS), num_rois=peer.NUM_ROIS, positive_fraction=1.0, loss=mode,
        num_federated=peer.NUM_FEDERATED, num_convs=2, hidden=peer.HIDDEN, mask_convs=2,
    )  # fmt: skip
    heads = CascadeHeads(peer.CHANNELS, peer.CLASSES, settings, peer.STRIDES)
    drawn = peer.weights({name: tuple(shape) for name, shape in shapes.items()})
    renamed = {head_name(f"roi_heads.{name}").removeprefix("cascade."): value for name, value in drawn.items()}
    assert set(renamed) == set(heads.state_dict())
    heads.load_state_dict(renamed)
    return heads


@pytest.mark.parametrize("mode", peer.MODES)
def test_losses_of_all_stages_and_detections_equal_detectron2s(mode):
    given = expected(mode)
    heads = heads_with(mode, given["shapes"])
    maps, proposals, truths = peer.inputs()
    maps = [one.requires_grad_() for one in maps]
    order = torch.tensor(peer.ORDER)
    objects = [TargetObjects(one["labels"], one["boxes"], one["masks"]) for one in truths]
    sizes = [(peer.SIDE, peer.SIDE)] * 2
    losses = heads.train().losses(maps, proposals, objects, sizes, order)
    names = {"mask_loss": "loss_mask"}
    for stage in range(3):
        names |= {f"class_loss_{stage}": f"loss_cls_stage{stage}", f"box_loss_{stage}": f"loss_box_reg_stage{stage}"}
    assert set(names) == set(losses)
    for ours, theirs in names.items():
        assert losses[ours].item() == pytest.approx(given["losses"][theirs], rel=1e-5, abs=1e-6), ours
    torch.stack(list(losses.values())).sum().backward()
    for each, size in zip(maps, given["gradients"], strict=True):  # those of the stages are averaged, not added
        assert each.grad.abs().sum().item() == pytest.approx(size, rel=1e-4)
    selection = Selection(score=peer.SCORE, max_detections=peer.MAX_DETECTIONS)
    with torch.no_grad():
        found = heads.eval().detect(maps, proposals, peer.SIZES, selection)
    for one, other in zip(found, given["detections"], strict=True):
        assert len(one.labels) >= 10
        assert one.labels.tolist() == other["labels"]
        torch.testing.assert_close(one.scores, torch.tensor(other["scores"]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.boxes, torch.tensor(other["boxes"]), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one.masks.mean(dim=(1, 2)), torch.tensor(other["mask_means"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.masks[:, 3, 5], torch.tensor(other["mask_corners"]), rtol=1e-4, atol=1e-5)
