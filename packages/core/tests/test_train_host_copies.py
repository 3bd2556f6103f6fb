"""Copies of a checkpoint's tensors equal them, use the same memory again, and the time spent on them is counted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from train_toy import plan, train
from vfm.train.checkpoint import checkpoint
from vfm.train.checkpoint.host_copies import HostBuffers, Pauses


def test_buffers_have_the_values_and_are_used_again(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = {"plain": torch.randn(3, 2), "cut": distribute_tensor(torch.randn(4, 2), mesh, [Shard(0)])}
        best = {"plain": torch.ones(2)}
        buffers = HostBuffers(pinned=False)
        addresses = []
        for _ in range(2):
            copies = buffers.copy({"model": model, "best": best})
            assert copies["best"] is best
            cut = copies["model"]["cut"]
            assert isinstance(cut, DTensor)
            assert cut.placements == (Shard(0),)
            for name in model:
                assert torch.equal(copies["model"][name], model[name])
            addresses.append([copies["model"]["plain"].data_ptr(), cut.to_local().data_ptr()])
            for value in model.values():
                assert value.detach().add_(1) is not copies["model"]
            assert not torch.equal(copies["model"]["plain"], model["plain"])
            assert not torch.equal(cut.to_local(), model["cut"].to_local())  # type: ignore[attr-defined]
        assert addresses[0] == addresses[1]
        model["plain"] = torch.randn(5)
        assert torch.equal(buffers.copy({"model": model})["model"]["plain"], model["plain"])
    finally:
        dist.destroy_process_group()


def test_the_log_has_the_share_of_time_spent_waiting_for_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = checkpoint.publish_folder

    def slowly(*folders: Path) -> None:
        time.sleep(0.5)
        publish(*folders)

    monkeypatch.setattr(checkpoint, "publish_folder", slowly)
    *_, events = train(tmp_path, plan(steps=6, log_every=6, checkpoint={"every_steps": 2}))
    shares = [event.data["values"]["train/checkpoint_wait_pct"] for event in events if event.type == "metrics"]
    assert len(shares) == 1
    assert 40 < shares[0] <= 100  # one checkpoint is waited for before the line: half a second of little more


def test_pauses_are_taken_once() -> None:
    pauses = Pauses()
    with pauses.counted():
        time.sleep(0.02)
    assert pauses.take() >= 0.02
    assert pauses.take() == 0
