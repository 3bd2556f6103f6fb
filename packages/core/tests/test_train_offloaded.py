"""Sharded weights in host memory, and blocks that are gathered early, train to the same bits as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import distributed as dist, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from train_toy import Deep, Probe, in_processes, plan
from vfm.base import UserError
from vfm.plugin import TrainingRuntime
from vfm.train import distributed
from vfm.train.parallel.parallel import in_processes as placed
from vfm.train.parallel.sharded import offload_policy, prefetch_blocks

CPU = torch.device("cpu")
FSDP: dict[str, Any] = {"device": "cpu", "parallel": "fsdp"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefetched": {"prefetch_blocks": 2},
    "offloaded": {"cpu_offload": True},
    "both": {"prefetch_blocks": 1, "cpu_offload": True, "reshard": False},
}


def job(name: str, runtime: dict[str, Any]) -> dict[str, Any]:
    training = plan(
        lr=0.01,
        log_every=1,
        grad_clip_norm=0.5,
        ema_decay=0.9,
        micro_batch_size=2,
        checkpoint={"every_steps": 3},
        tasks=[Probe(name="probe", at=-1.0)],
        every_steps=2,
        runtime={**FSDP, **runtime},
    )
    return {"folder": name, "plan": training.model_dump(mode="json"), "deep": True}


@pytest.mark.slow
def test_neither_host_memory_nor_early_gathering_changes_a_bit(tmp_path: Path) -> None:
    in_processes(2, tmp_path, [job(name, runtime) for name, runtime in SETTINGS.items()])
    for file in ("final.safetensors", "part/metrics.jsonl"):
        expected = (tmp_path / "plain" / file).read_bytes()
        assert len(expected) > 500
        for name in SETTINGS:
            assert (tmp_path / name / file).read_bytes() == expected, f"{name}/{file}"


def towers() -> nn.Module:
    return nn.ModuleDict({name: nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))) for name in ("image", "text")})


def test_each_block_has_its_neighbours_in_the_same_tower_gathered(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = towers()
        for tower in model.children():
            for block in tower.children():
                fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        prefetch_blocks(model, 2)
        states = [[block._get_fsdp_state() for block in tower.children()] for tower in model.children()]
        for blocks in states:
            forward = [blocks[1:3], blocks[2:4], blocks[3:], []]
            assert [state._states_to_forward_prefetch for state in blocks] == forward
            backward = [[], blocks[:1], [blocks[1], blocks[0]], [blocks[2], blocks[1]]]
            assert [state._states_to_backward_prefetch for state in blocks] == backward
    finally:
        dist.destroy_process_group()


def test_host_memory_is_pinned_for_gpus() -> None:
    runtime = TrainingRuntime(**FSDP, cpu_offload=True)
    policy = offload_policy(runtime, torch.device("cuda"))
    assert isinstance(policy, CPUOffloadPolicy)
    assert policy.pin_memory
    assert not isinstance(offload_policy(TrainingRuntime(**FSDP), CPU), CPUOffloadPolicy)
    assert isinstance(offload_policy(TrainingRuntime(**FSDP), CPU), OffloadPolicy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu_offload": True}, "cpu_offload: true needs parallel: fsdp"),
        ({"prefetch_blocks": 2}, "prefetch_blocks needs parallel: fsdp"),
        ({"prefetch_blocks": 0, "parallel": "fsdp"}, "greater than or equal to 1"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingRuntime.model_validate(settings)


def test_one_process_cannot_offload() -> None:
    runtime = TrainingRuntime(**FSDP, cpu_offload=True)
    with (
        distributed(runtime) as world,
        pytest.raises(UserError, match=r"runtime\.cpu_offload: expected several processes, got 1"),
    ):
        placed(Deep(), runtime, world)
