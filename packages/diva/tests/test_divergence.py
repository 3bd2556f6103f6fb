"""A loss that rises for good stops the training, and the checkpoint before is kept; fluctuations do not stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diva_toy import context, tune_config
from test_tune import Fixed, batch_for, make_task
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool, UserError
from vfm.train import fit
from vfm_diva.tune.divergence import WINDOW, DivergenceWatch


def watched(losses: list[float]) -> DivergenceWatch:
    watch = DivergenceWatch(max_rise=2.0)
    for loss in losses:
        watch.add(torch.tensor(loss))
    return watch


def test_the_means_of_the_first_and_the_last_steps_are_compared() -> None:
    first = [0.9, 1.1] * (WINDOW // 2)
    watched([*first, *[1.9] * 40]).check()
    watched([*first, *[1.0] * 10, *[9.0] * 2]).check()  # two bad batches
    watched([100.0] * 5).check()  # too early
    with pytest.raises(UserError, match=r"of steps 41 to 60 is 2\.1, .* the 1 of the first 20 steps") as caught:
        watched([*first, *[2.1] * 40]).check()
    assert "\n" not in str(caught.value)
    watch = watched([*first, *[2.1] * 40])
    watch.reset()
    watch.check()


def test_the_recorded_losses_are_in_the_checkpoint() -> None:
    watch, other = watched([1.0] * 30), DivergenceWatch(max_rise=2.0)
    other.load_state_dict(watch.state_dict())
    for _ in range(WINDOW):
        other.add(torch.tensor(3.0))
    with pytest.raises(UserError, match="of steps 31 to 50"):
        other.check()


def test_a_diverging_training_stops_and_keeps_the_checkpoint_before(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = make_task(clip, prior, max_loss_rise=1.5)
    batch = batch_for(task, pool)
    config = tune_config(steps=200, optimizer={"type": "sgd"}, lr=1e-3, checkpoint={"every_steps": 10})
    calls = 0
    denoise = task.denoiser.module.forward

    def rising(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        error: torch.Tensor = denoise(*args)
        return error * (1 + max(0, calls - 25))

    task.denoiser.module.forward = rising  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match=r"the training diverges: .* earlier checkpoints are kept"):
        fit(task, Fixed(batch), config, context(config, tmp_path))
    assert 25 < calls < 32
    kept = sorted((tmp_path / "work").glob("step-*"))
    assert [folder.name for folder in kept] == ["step-00000010", "step-00000020"]
    tensors = load_file(kept[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
