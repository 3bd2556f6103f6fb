"""The papers' detectors as recipes: they have the released configurations' values and fit their encoders."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vfm.eval.dense.stages import Detection
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import build_vision
from vfm.plugin import Stage
from vfm_eva.dense.detect.checkpoint import build_detector
from vfm_eva.dense.detect.stages import EvaDetect

# recipe: side, window, number of global blocks, batch, steps, peak rate, layer decay, drop path, loss
RELEASED = {
    "eva_02_b_coco": (1024, 16, 4, 128, 60_000, 5e-5, 0.7, 0.1, "softmax"),
    "eva_02_b_coco_1536": (1536, 32, 6, 128, 60_000, 5e-5, 0.7, 0.1, "softmax"),
    "eva_02_l_coco": (1024, 16, 4, 144, 60_000, 6e-5, 0.8, 0.4, "softmax"),
    "eva_02_l_coco_1536": (1536, 32, 8, 128, 60_000, 5e-5, 0.8, 0.4, "softmax"),
    "eva_02_b_lvis": (1024, 16, 4, 128, 50_000, 1e-4, 0.7, 0.1, "federated"),
    "eva_02_l_lvis": (1024, 16, 4, 128, 40_000, 1e-4, 0.8, 0.4, "federated"),
    "eva_02_l_lvis_1536": (1536, 32, 8, 128, 40_000, 1e-4, 0.8, 0.4, "federated"),
    "eva_g_coco": (1280, 16, 10, 64, 45_000, 2.5e-5, 0.9, 0.6, "softmax"),
    "eva_g_lvis": (1280, 16, 10, 64, 75_000, 2e-4, 0.9, 0.6, "federated"),
}


def recipe_stages(name: str, folder: Path) -> dict[str, Stage]:
    known = stage_types(load_plugins())
    paths = [f"{split}.path={folder}" for split in ("train", "val")]
    return {stage.name: stage for stage in load_recipe(name, known, paths).stages}


@pytest.mark.parametrize("name", RELEASED)
def test_values_are_the_released_ones_and_the_head_fits_the_encoder(name, tmp_path):
    side, window, num_global, batch, steps, lr, decay, drop_path, loss = RELEASED[name]
    found = recipe_stages(name, tmp_path)
    stage, ruler = found["detector"], found["ap"]
    assert isinstance(stage, EvaDetect)
    assert isinstance(ruler, Detection)
    head = stage.detector
    assert (head.image_size, head.windows.window, len(head.windows.global_blocks)) == (side, window, num_global)
    assert (stage.global_batch_size, stage.num_steps, stage.lr) == (batch, steps, lr)
    assert (stage.trained.layer_decay, stage.drop_path, head.cascade.loss) == (decay, drop_path, loss)
    assert (stage.optimizer.weight_decay, stage.decay_vectors, stage.patch_size) == (0.1, True, 16)
    assert stage.repeat_threshold == (0.001 if loss == "federated" else 0)
    assert ruler.max_dets == {"eva_g_lvis": 1000}.get(name, 300 if loss == "federated" else None)
    architecture = found["encoder"].source.split(".")[0]
    num_classes = 1203 if loss == "federated" else 80
    with torch.device("meta"):
        encoder = build_vision(architecture, num_classes=0, patch_size=16, image_size=256)
        model = build_detector(encoder, num_classes, head)
    blocks = sorted(model.encoder.global_blocks)
    assert blocks[-1] == model.encoder.depth - 1  # the pyramid reads a block that saw the whole image
    assert len({after - before for before, after in pairwise(blocks)}) == 1
