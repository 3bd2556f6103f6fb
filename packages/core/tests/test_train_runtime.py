"""Settings of a runtime that exclude each other are refused with the recipe, and none of them is decisive."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from train_toy import Plan, plan
from vfm.base import decisive_settings
from vfm.interfaces import Runtime
from vfm.train import distributed


class Shardable(Plan):
    can_shard = True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": {"parallel": "fsdp", "compile": "whole"}}, "compile: whole needs parallel: ddp"),
        (
            {"runtime": {"parallel": "fsdp"}, "precision": "bf16"},
            "fsdp stores weights in fp32: expected another precision",
        ),
        (
            {"runtime": {"selective_checkpointing": True}, "grad_checkpointing": True},
            "give either grad_checkpointing or",
        ),
        ({"runtime": {"parallel": "fsdp"}, "precision": "amp_fp16"}, "amp_fp16 needs runtime.parallel: ddp"),
        ({"runtime": {"profile": [5, 3]}}, "expected the first step before the last one"),
        ({"optimizer": {"type": "timm", "algorithm": "muonn"}}, "optimizer"),
        ({"lr": float("nan")}, r"lr\n.*finite number"),
        ({"optimizer": {"type": "adamw", "weight_decay": float("inf")}}, r"weight_decay\n.*finite number"),
        ({"loading": {"cache_gb": float("inf")}}, r"cache_gb\n.*finite number"),
    ],
)
def test_what_excludes_each_other_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Shardable(steps=1, **settings)


def test_how_layers_run_is_no_part_of_a_trainings_identity():
    runtime = {"compile": "blocks", "channels_last": True, "sync_batch_norm": True, "selective_checkpointing": True}
    changed = plan(runtime={**runtime, "profile": [2, 3]})
    assert decisive_settings(changed) == decisive_settings(plan())


def test_a_training_restores_the_number_of_threads():
    before = torch.get_num_threads()
    with distributed(Runtime(threads=before + 1, device="cpu")):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
