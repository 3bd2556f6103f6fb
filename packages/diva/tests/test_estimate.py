"""The estimate of a tuning's memory is that of the tuning which then runs; Stable Diffusion has its published size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diva_toy import tune_config
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, Context, Event, GeneratorCheckpoint, Pool, Preflight
from vfm.train import LiveBytes
from vfm_diva.estimate import diva_tune_cost, stable_diffusion


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 8, "precision": "amp_bf16"}], ids=["plain", "bf16"])
def test_memory_is_within_15_percent_of_what_a_tuning_takes(
    settings: dict[str, Any], tmp_path: Path, pool: Pool, clip: ClipCheckpoint, prior: GeneratorCheckpoint
) -> None:
    config, counter, peaks = tune_config(global_batch_size=48, steps=3, log_every=1, **settings), LiveBytes(), [0]

    def listen(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 1:  # the first step counts operations, too
            counter.peak = counter.now
        if event.type == "metrics" and event.data["step"] == 2:  # before a checkpoint is written
            peaks.append(counter.peak)

    folders = {"pool": pool.path, "clip": clip.path, "prior": prior.path}
    cost = diva_tune_cost(config, Preflight({}, folders))
    assert cost.memory
    (tmp_path / "part").mkdir()
    with counter:
        config.run(Context("diva", tmp_path / "part", tmp_path / "work", folders, listen))
    weights = load_clip(clip).module.named_parameters()  # the text tower is never moved to the device
    text = sum(weight.nbytes for name, weight in weights if not name.startswith("visual."))
    assert cost.memory.total == pytest.approx(peaks[-1] - text, rel=0.15)


def test_stable_diffusion_has_its_published_size() -> None:
    network = stable_diffusion().denoiser.network
    assert sum(parameter.numel() for parameter in network.parameters()) == 865_910_724
