"""Each process of a sharded pre-training reads its rows of the encoder that it starts from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eva_toy import context, run_group
from test_start import start_stage
from vfm.models import build_vision, save_vision
from vfm.models.stored_weights import mapped_pages
from vfm.plugin import Runtime, VisionCheckpoint
from vfm.train import distributed, weights_from_first
from vfm.train.parallel.sharded import Sharded
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task, start_from
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.stored import StoredTargets

ENCODER: dict[str, Any] = {
    "architecture": "vit_large_patch16_224", "patch_size": 8, "img_size": 32, "depth": 1, "mlp_ratio": 8.0,
}  # fmt: skip
FSDP = {"device": "cpu", "parallel": "fsdp"}


def read(folder: Path, start: VisionCheckpoint) -> None:
    """Count the bytes of the start that this process touches, and compare the weights with those of one process."""
    file = start.path / "model.safetensors"
    ctx = context(folder, start=start)

    def started(runtime: dict[str, Any]) -> EvaTask:
        config = start_stage(runtime=runtime)
        with weights_from_first(config.runtime):
            task = build_task(config, build_student(config, start), StoredTargets(8))
            start_from(task, start, ctx)
        return task

    with distributed(Runtime(device="cpu")) as world:
        expected = {name: value.clone() for name, value in started({"device": "cpu"}).state_dict().items()}
        before = touched(file)
        task = started(FSDP)
        placed = Sharded(task, world, start_stage(runtime=FSDP).runtime)
        placed.wrap(None)
        share = (touched(file) - before) / file.stat().st_size
        with placed.whole():
            ours = task.state_dict()
            equal = ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in expected)
    (folder / "read.json").write_text(json.dumps([share, equal]))


def touched(file: Path) -> int:
    """Count the bytes of a file that its maps in this process have in memory."""
    return 1024 * sum(size for kind, size in mapped_pages(file) if kind == "Rss:")


@pytest.mark.slow
def test_each_process_reads_its_rows_of_the_encoder_that_it_starts_from(tmp_path: Path) -> None:
    start = save_vision(build_vision(ENCODER, num_classes=0, seed=9), tmp_path / "start")
    run_group(__file__, *([tmp_path / str(rank), start.path] for rank in range(2)))
    for rank in range(2):
        share, equal = json.loads((tmp_path / str(rank) / "read.json").read_text())
        assert equal
        assert 0.45 < share < 0.65  # pages are mapped in large pieces


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_WORLD_SIZE", "2")
    root, start_folder = sys.argv[1:]
    read(Path(root), VisionCheckpoint.load(start_folder))
